package ops

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// scrape answers GET /metrics in the format that is asked for. A large fleet has some
// twenty thousand series and megabytes of text. promhttp gathers all, writes it and
// compresses it at gzip's usual level, one after another; here each gatherer's part of
// the page is made beside the others, and compressed, at the level that costs least,
// as soon as it is there.
func (s *Server) scrape(w http.ResponseWriter, r *http.Request) {
	format := expfmt.NegotiateAccept(r.Header, expfmt.DefaultOpenMetricsAcceptedFormats()...)
	gatherers := s.Gatherers()
	parts := make(chan part, len(gatherers))
	for _, one := range gatherers {
		go func() { parts <- encode(format, one) }()
	}
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
	for range gatherers {
		p := <-parts
		if p.err != nil {
			s.Log.Error("the metrics could not be gathered", "error", p.err.Error())
			panic(http.ErrAbortHandler) // half a page must not look whole
		}
		if _, err := out.Write(p.text); err != nil {
			return // who asked has left
		}
	}
	if format.FormatType() == expfmt.TypeOpenMetrics {
		// Who left needs no end.
		_, _ = expfmt.FinalizeOpenMetrics(out)
	}
}

// part is a part of a page.
type part struct {
	text []byte
	err  error
}

// encode writes what a gatherer has. All names are such as need no escaping, in
// whatever way the reader would have it.
func encode(format expfmt.Format, gatherer prometheus.Gatherer) (p part) {
	families, err := gatherer.Gather()
	if err != nil {
		return part{err: err}
	}
	var b bytes.Buffer
	encoder := expfmt.NewEncoder(&b, format.WithEscapingScheme(model.NoEscaping))
	for _, f := range families {
		if err := encoder.Encode(f); err != nil {
			return part{err: fmt.Errorf("%s: %w", f.GetName(), err)}
		}
	}
	return part{text: b.Bytes()}
}

// takesGzip reads the header Accept-Encoding.
func takesGzip(accepted string) bool {
	for one := range strings.SplitSeq(accepted, ",") {
		name, params, _ := strings.Cut(one, ";")
		quality, hasQuality := strings.CutPrefix(strings.TrimSpace(params), "q=")
		q, err := strconv.ParseFloat(quality, 64)
		if strings.TrimSpace(name) == "gzip" && (!hasQuality || err == nil && q > 0) {
			return true
		}
	}
	return false
}
