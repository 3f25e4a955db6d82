package gateway

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"tidegate/gateway/refusal"
)

// pack compresses a body.
func pack(t testing.TB, coding, body string) string {
	t.Helper()
	var b bytes.Buffer
	var z io.WriteCloser
	switch coding {
	case "gzip", "x-gzip":
		z = gzip.NewWriter(&b)
	case "zlib":
		z = zlib.NewWriter(&b)
	case "flate":
		z, _ = flate.NewWriter(&b, flate.BestCompression) // the level is one that there is
	default:
		t.Fatal(coding)
	}
	if _, err := io.WriteString(z, body); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// tokenizer posts a body to /tokenize of a gateway with a body limit of 64 KiB.
func tokenizer(t testing.TB) (g *Gateway, post func(body string, headers ...string) *httptest.ResponseRecorder) {
	g, _ = bare(t, func(c *Config) {
		c.MaxBody, c.BodyBudget = 64<<10, BodyBudget{Total: 256 << 10, PerCaller: 256 << 10}
	})
	h := g.Handler()
	return g, func(body string, headers ...string) *httptest.ResponseRecorder {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/tokenize", strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		for i := 0; i < len(headers); i += 2 {
			if headers[i] == "Content-Type" {
				r.Header.Del(headers[i])
			}
			r.Header.Add(headers[i], headers[i+1])
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(deadlines{w}, r)
		return w
	}
}

// TestEncodedBodies sends bodies in the codings of RFC 9110 and in others.
func TestEncodedBodies(t *testing.T) {
	const hello = `{"prompt":"Hello"}`
	zipped := pack(t, "gzip", hello)
	long := `{"prompt":"Hello"` + strings.Repeat(" ", 64<<10-len(hello)) + "}"
	g, post := tokenizer(t)
	for name, c := range map[string]struct {
		encodings []string
		body      string
		status    int
		want      string
	}{
		"gzip":                  {[]string{"gzip"}, zipped, 200, `"count":1`},
		"x-gzip":                {[]string{"X-GZIP"}, zipped, 200, `"count":1`},
		"deflate":               {[]string{"deflate"}, pack(t, "zlib", hello), 200, `"count":1`},
		"deflate without zlib":  {[]string{"deflate"}, pack(t, "flate", hello), 200, `"count":1`},
		"identity":              {[]string{"identity"}, hello, 200, `"count":1`},
		"identity and gzip":     {[]string{"identity, gzip"}, zipped, 200, `"count":1`},
		"nothing":               {[]string{""}, hello, 200, `"count":1`},
		"the longest":           {[]string{"gzip"}, pack(t, "gzip", long), 200, `"count":1`},
		"one byte more":         {[]string{"gzip"}, pack(t, "gzip", long+" "), 413, "larger than 64KiB when it is decompressed"},
		"a bomb":                {[]string{"gzip"}, pack(t, "gzip", strings.Repeat(" ", 32<<20)), 413, "when it is decompressed"},
		"zstd":                  {[]string{"zstd"}, "\x28\xb5\x2f\xfd" + hello, 415, "`zstd`"},
		"br":                    {[]string{"br"}, hello, 415, "`br`"},
		"twice":                 {[]string{"gzip, gzip"}, zipped, 415, "several times"},
		"twice, in two headers": {[]string{"gzip", "deflate"}, zipped, 415, "several times"},
		"not compressed":        {[]string{"gzip"}, hello, 415, "is damaged"},
		"not deflated":          {[]string{"deflate"}, hello, 415, "cannot be decompressed"},
		"cut":                   {[]string{"gzip"}, zipped[:len(zipped)-9], 415, "ends too early"},
		"a wrong sum":           {[]string{"gzip"}, zipped[:len(zipped)-5] + "x" + zipped[len(zipped)-4:], 415, "damaged"},
		"two files":             {[]string{"gzip"}, zipped + zipped, 415, "something follows its end"},
		"empty":                 {[]string{"gzip"}, "", 415, "ends too early"},
		"empty, deflate":        {[]string{"deflate"}, "", 415, "ends too early"},
		"broken JSON within":    {[]string{"gzip"}, pack(t, "gzip", "{"), 400, "invalid_request"},
	} {
		t.Run(name, func(t *testing.T) {
			var headers []string
			for _, e := range c.encodings {
				headers = append(headers, "Content-Encoding", e)
			}
			w := post(c.body, headers...)
			if w.Code != c.status || !strings.Contains(w.Body.String(), c.want) {
				t.Errorf("%d %s, expected %d with %s", w.Code, w.Body, c.status, c.want)
			}
			if w.Code == 415 && !strings.Contains(w.Body.String(), `"code":"unsupported_encoding"`) {
				t.Errorf("got %s", w.Body)
			}
			if g.bodies.used != 0 {
				t.Errorf("%d bytes are still held", g.bodies.used)
			}
		})
	}
	if got := post(hello, "Content-Encoding", "br").Header().Get("Accept-Encoding"); got != "gzip, deflate, identity" {
		t.Errorf("Accept-Encoding: %q", got)
	}
}

// TestPackedBodiesAreHeld checks that a body counts with what it decompresses to while
// that is made, and that a caller cannot have more of it than its budget.
func TestPackedBodiesAreHeld(t *testing.T) {
	g, post := tokenizer(t)
	g.bodies.configure(BodyBudget{Total: 40 << 10, PerCaller: 40 << 10})
	w := post(pack(t, "gzip", `{"prompt":"`+strings.Repeat("a ", 25<<10)+`"}`), "Content-Encoding", "gzip")
	if w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "body_budget") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if g.bodies.used != 0 {
		t.Errorf("%d bytes are still held", g.bodies.used)
	}
}

// emptyBlocks is a deflate body of blocks that make nothing, each with Huffman tables
// to be built: what costs most time for each byte.
func emptyBlocks(size int) string {
	var out []byte
	var bits uint64
	var count uint
	put := func(value uint64, width uint) {
		bits |= value << count
		for count += width; count >= 8; count -= 8 {
			out, bits = append(out, byte(bits)), bits>>8
		}
	}
	for len(out) < size {
		put(0, 1)  // not the last block
		put(2, 2)  // of its own tables
		put(0, 10) // for 257 lengths and literals, and 1 distance
		put(14, 4)
		for i := range 18 { // lengths of codes: one bit each for "1" and for "zeros"
			if i == 2 || i == 17 {
				put(1, 3)
			} else {
				put(0, 3)
			}
		}
		put(1|127<<1, 8) // 138 zeros
		put(1|107<<1, 8) // 118 zeros
		put(0, 3)        // a length for the end, one for the distance, and the end
	}
	return string(out)
}

// TestPaddedBody checks that a body of blocks that make nothing is given up early.
func TestPaddedBody(t *testing.T) {
	in := &packedBody{}
	in.Reset([]byte(emptyBlocks(1 << 20)))
	out, err := newDecompressor("deflate", in)
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, &unpackedBody{out, in})
	if err != errPadded || n != 0 { //nolint:errorlint // it is not wrapped
		t.Errorf("%d bytes, %v", n, err)
	}
	if read := int(in.Size()) - in.Len(); read > maxPadding+64<<10 {
		t.Errorf("%d bytes were read", read)
	}
}

// TestContentTypes sends the Content-Type lines of real clients.
func TestContentTypes(t *testing.T) {
	_, post := tokenizer(t)
	for _, good := range []string{
		"application/json", "Application/JSON", "application/json; charset=utf-8", "application/json;charset=UTF-8;", "application/json; utf-8",
		"application/json; charset", "application/json; charset=", "application/json; charset=utf-8; charset=utf-8", "application/json; charset=utf-8, application/json",
		"application/json;odata=verbose;", `application/json; charset="utf-8`, "application/json ; charset=utf-8", "application/json;;charset=utf-8", "application/json; charset:utf-8",
	} {
		if w := post(`{"prompt":"Hello"}`, "Content-Type", good); w.Code != 200 {
			t.Errorf("%q: %d %s", good, w.Code, w.Body)
		}
	}
	for _, bad := range []string{"", "text/plain", "text/plain; application/json", "application/jsonl", "application/json+x", "application/x-www-form-urlencoded", "application/json, text/plain"} {
		w := post(`{"prompt":"Hello"}`, "Content-Type", bad)
		if w.Code != 400 || !strings.Contains(w.Body.String(), "Content-Type is "+orNone(bad)) {
			t.Errorf("%q: %d %s", bad, w.Code, w.Body)
		}
	}
}

// FuzzDecompress feeds a decompressor any bytes: it must end, and make no more than is allowed.
func FuzzDecompress(f *testing.F) {
	for _, seed := range []string{pack(f, "gzip", `{"prompt":"Hello"}`), pack(f, "zlib", "{}"), pack(f, "flate", strings.Repeat(" ", 1<<17)), emptyBlocks(300 << 10), "\x1f\x8b\x08\x1c"} {
		f.Add(true, seed)
		f.Add(false, seed)
	}
	set := &settings{Config: Config{MaxBody: 64 << 10}}
	f.Fuzz(func(t *testing.T, zip bool, sent string) {
		coding := "deflate"
		if zip {
			coding = "gzip"
		}
		c := &call{settings: set}
		body, err := c.decompress(coding, []byte(sent))
		switch known := refusedFor(err); {
		case err == nil && len(body) > 64<<10:
			t.Errorf("%d bytes", len(body))
		case err != nil && known != refusal.UnsupportedEncoding && known != refusal.RequestTooLarge:
			t.Error(err)
		}
	})
}
