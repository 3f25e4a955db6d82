package gateway

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
)

// scrape answers GET /metrics in the format that is asked for. A large fleet has some
// twenty thousand series and megabytes of text. promhttp writes them one after another
// and compresses them at gzip's usual level, which takes longer than all the rest; here
// parts of the page are written side by side, and compressed at the level that costs
// least while later parts are still written.
func (g *Gateway) scrape(w http.ResponseWriter, r *http.Request) {
	families, err := g.gather()
	if err != nil {
		g.Log.Error("the metrics could not be gathered", "error", err.Error())
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	format := expfmt.NegotiateAccept(r.Header, expfmt.DefaultOpenMetricsAcceptedFormats()...)
	w.Header().Set("Content-Type", string(format))
	w.Header().Set("Vary", "Accept, Accept-Encoding")
	out := io.Writer(w)
	if takesGzip(r.Header.Get("Accept-Encoding")) {
		w.Header().Set("Content-Encoding", "gzip")
		zip, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
		if err == nil { // the level is a good one
			defer zip.Close() //nolint:errcheck // a reader who left needs no rest
			out = zip
		}
	}
	parts := shares(families, runtime.GOMAXPROCS(0))
	written := make([]chan part, len(parts))
	for i, families := range parts {
		written[i] = make(chan part, 1)
		go func() { written[i] <- encode(format, families, i == len(parts)-1) }()
	}
	for _, one := range written {
		p := <-one
		if p.err == nil {
			_, p.err = out.Write(p.text)
		}
		if p.err != nil {
			g.Log.Debug("a page of metrics was not sent", "error", p.err.Error())
			panic(http.ErrAbortHandler) // half a page must not look whole
		}
	}
}

// gather is all metrics by name. The registries are asked side by side: most of the
// work is a registry's, which does it on one goroutine.
func (g *Gateway) gather() ([]*dto.MetricFamily, error) {
	type gathered struct {
		families []*dto.MetricFamily
		err      error
	}
	beside := make(chan gathered, len(g.Beside))
	for _, one := range g.Beside {
		go func() {
			families, err := one.Gather()
			beside <- gathered{families, err}
		}()
	}
	families, err := g.Registry.Gather()
	for range g.Beside {
		more := <-beside
		families, err = append(families, more.families...), errors.Join(err, more.err)
	}
	slices.SortFunc(families, func(a, b *dto.MetricFamily) int { return strings.Compare(a.GetName(), b.GetName()) })
	return families, err
}

// lineBytes is about how long a line of a page is.
const lineBytes = 128

// part is a part of a page.
type part struct {
	text []byte
	err  error
}

// encode writes families; the last part ends the page.
func encode(format expfmt.Format, families []*dto.MetricFamily, last bool) part {
	var b bytes.Buffer
	size := 0
	for _, f := range families {
		size += lines(f) * lineBytes
	}
	b.Grow(size)
	to := expfmt.NewEncoder(&b, format)
	for _, f := range families {
		if err := to.Encode(f); err != nil {
			return part{err: fmt.Errorf("%s: %w", f.GetName(), err)}
		}
	}
	if end, ok := to.(expfmt.Closer); ok && last {
		if err := end.Close(); err != nil {
			return part{err: err}
		}
	}
	return part{text: b.Bytes()}
}

// shares cuts families into about n parts of like size, in their order. There is at
// least one part.
func shares(families []*dto.MetricFamily, n int) (parts [][]*dto.MetricFamily) {
	total := 0
	for _, f := range families {
		total += lines(f)
	}
	from, sum := 0, 0
	for i, f := range families {
		if sum += lines(f); sum*n >= total*(len(parts)+1) && i+1 < len(families) {
			parts, from = append(parts, families[from:i+1]), i+1
		}
	}
	return append(parts, families[from:])
}

// lines is about how long a family is.
func lines(f *dto.MetricFamily) int {
	if f.GetType() == dto.MetricType_HISTOGRAM && len(f.GetMetric()) > 0 {
		return len(f.GetMetric()) * (3 + len(f.GetMetric()[0].GetHistogram().GetBucket()))
	}
	return len(f.GetMetric())
}

// takesGzip reads the header Accept-Encoding.
func takesGzip(accepted string) bool {
	for one := range strings.SplitSeq(accepted, ",") {
		name, params, _ := strings.Cut(one, ";")
		quality, given := strings.CutPrefix(strings.TrimSpace(params), "q=")
		q, err := strconv.ParseFloat(quality, 64)
		if strings.TrimSpace(name) == "gzip" && (!given || err == nil && q > 0) {
			return true
		}
	}
	return false
}
