package gateway

import (
	"net/netip"
	"strings"
	"testing"

	"tidegate/gateway/account"
	"tidegate/gateway/backend"
)

// TestHottestAlias: who may use a model by its alias alone sees the limits that its
// pressure makes, as it meets them.
func TestHottestAlias(t *testing.T) {
	g, _ := bare(t, nil)
	model := backend.DefaultModel()
	model.Name, model.Aliases = "large", []string{"alias"}
	g.Fleet.Apply([]backend.ModelConfig{model})
	accounts := account.New(account.Config{Mode: account.Keys, Keys: []account.KeyConfig{{Name: "laptop", KeyEnv: "A", Key: "ada's own key, which the file names", User: "ada", Models: []string{"alias"}}}}, nil)
	who, err := accounts.Identify(t.Context(), "Bearer ada's own key, which the file names", netip.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	if worst := g.hottest(&call{caller: who}); worst.Model != "large" {
		t.Errorf("%+v", worst)
	}
}

// TestMissingModel: as with vLLM, the model need not be named where there is only one that
// the caller may use; where there are several, the refusal names them.
func TestMissingModel(t *testing.T) {
	g, _ := bare(t, nil)
	two := []backend.ModelConfig{backend.DefaultModel(), backend.DefaultModel()}
	two[0].Name, two[1].Name = "large", "small"
	for _, c := range []struct {
		fleet []backend.ModelConfig
		want  string // model; empty: a refusal
		says  string
	}{
		{two[:1], "large", ""},
		{two, "", "`large`"},
		{nil, "", "no model"},
	} {
		g.Fleet.Apply(c.fleet)
		x := &call{}
		m, err := g.askedModel(x)
		switch {
		case c.want != "" && (err != nil || m.Name != c.want || x.request.Wish.Model != c.want):
			t.Errorf("%d models: %v", len(c.fleet), err)
		case c.want == "":
			if r := explain(err, &facts{}); r.Status != 400 || r.Param != "model" || !strings.HasPrefix(r.Message, "model is missing") || !strings.Contains(r.Message, c.says) {
				t.Errorf("%d models: %+v", len(c.fleet), r)
			}
		}
	}
}
