package deploy

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

const (
	grafanaDir    = "grafana"
	prometheusDir = "prometheus"
)

// dashboard is what is asked of Prometheus in a file of Grafana's.
type dashboard struct {
	Title      string
	Templating struct {
		List []struct{ Type, Name, Definition, AllValue string }
	}
	Panels []struct {
		Title   string
		Targets []struct{ RefID, Expr, LegendFormat string }
	}
}

func readDashboards(t *testing.T) (all []dashboard) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(grafanaDir, "dashboards", "*.json"))
	if err != nil || len(files) < 4 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var d dashboard
		if err := json.Unmarshal(raw, &d); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		all = append(all, d)
	}
	return all
}

// TestProvisioning: what Grafana is given fits what Prometheus does.
func TestProvisioning(t *testing.T) {
	var sources struct {
		Datasources []struct {
			Type, URL string
			IsDefault bool `yaml:"isDefault"`
			JSON      struct {
				TimeInterval string `yaml:"timeInterval"`
			} `yaml:"jsonData"`
		}
	}
	readYAML(t, filepath.Join(grafanaDir, "provisioning/datasources/prometheus.yaml"), &sources)
	var scraped struct {
		Global struct {
			Every string `yaml:"scrape_interval"`
		}
	}
	readYAML(t, filepath.Join(prometheusDir, "prometheus.yml"), &scraped)
	if len(sources.Datasources) != 1 || !sources.Datasources[0].IsDefault || sources.Datasources[0].JSON.TimeInterval != scraped.Global.Every {
		t.Errorf("%+v, and Prometheus scrapes every %s", sources, scraped.Global.Every)
	}
	var providers struct {
		Providers []struct {
			Type    string
			Options struct{ Path string }
		}
	}
	readYAML(t, filepath.Join(grafanaDir, "provisioning/dashboards/tidegate.yaml"), &providers)
	if len(providers.Providers) != 1 || providers.Providers[0].Type != "file" || providers.Providers[0].Options.Path == "" {
		t.Errorf("%+v", providers)
	}
}
