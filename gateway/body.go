package gateway

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"tidegate/gateway/refusal"
)

// This file reads the body of a request from its caller: the kind it says to be of,
// how it is compressed, its length and the time it takes.

// readBody reads the caller's body, once, and decompresses it. What is returned is
// JSON by its header, has at most max_body bytes, and is held of the body budget.
func (c *call) readBody() ([]byte, error) {
	if kind := c.r.Header.Get("Content-Type"); !isJSON(kind) {
		return nil, refusal.New(refusal.InvalidRequest, "", fmt.Sprintf("the body must be JSON, and its Content-Type is %s: send the header Content-Type: application/json", orNone(kind)))
	}
	coding, err := codingOf(c.r.Header)
	if err != nil {
		c.writer.w.Header().Set("Accept-Encoding", acceptedCodings) // RFC 9110, 15.5.16
		return nil, err
	}
	if c.r.ContentLength > int64(c.settings.MaxBody) {
		return nil, c.tooLarge()
	}
	body, err := c.receive()
	if err != nil || coding == "" {
		return body, err
	}
	return c.decompress(coding, body)
}

// orNone quotes the value of a header, or says that there is none.
func orNone(value string) string {
	if value == "" {
		return "missing"
	}
	return refusal.Quote(value)
}

// isJSON reports whether a Content-Type is that of JSON. Only the media type counts,
// as in vLLM: what stands behind the semicolon is often broken, and says nothing of JSON,
// which is UTF-8 always (RFC 8259, 8.1 and 11).
func isJSON(contentType string) bool {
	if contentType == "application/json" {
		return true // as most clients send it
	}
	kind, _, _ := strings.Cut(contentType, ";")
	return strings.EqualFold(strings.TrimSpace(kind), "application/json")
}

// acceptedCodings are the codings of a body that are taken, as Accept-Encoding lists them.
const acceptedCodings = "gzip, deflate, identity"

// codingOf returns the Content-Encoding of a request: gzip, deflate or nothing. Any
// other is refused, and so are several on top of each other.
func codingOf(h http.Header) (coding string, err error) {
	values := h["Content-Encoding"]
	if len(values) == 0 {
		return "", nil
	}
	for name := range strings.SplitSeq(strings.Join(values, ","), ",") {
		switch name = strings.ToLower(strings.TrimSpace(name)); {
		case name == "", name == "identity":
		case coding != "":
			return "", refusal.New(refusal.UnsupportedEncoding, "", "the body is compressed several times (Content-Encoding: "+refusal.Quote(strings.Join(values, ", "))+"): compress it once, with gzip or deflate, or send it as it is")
		case name == "gzip", name == "x-gzip":
			coding = "gzip"
		case name == "deflate":
			coding = "deflate"
		default:
			return "", refusal.New(refusal.UnsupportedEncoding, "", "the body is compressed in a way that this gateway does not read (Content-Encoding: "+refusal.Quote(name)+"): compress it with gzip or deflate, or send it as it is")
		}
	}
	return coding, nil
}

// receive reads the body as it comes, of at most max_body bytes and within body_timeout.
func (c *call) receive() ([]byte, error) {
	limit := int64(c.settings.MaxBody)
	deadline := http.NewResponseController(c.writer.w)
	if err := deadline.SetReadDeadline(time.Now().Add(c.settings.BodyTimeout)); err != nil {
		return nil, fmt.Errorf("set read deadline: %w", err)
	}
	defer func(began time.Time) { c.reading = time.Since(began) }(time.Now())
	expected := limit
	if c.r.ContentLength >= 0 {
		expected = c.r.ContentLength
	}
	body, err := c.fill(http.MaxBytesReader(c.writer.w, c.r.Body, limit), int(expected), 0)
	var ours *refusal.Refusal
	switch {
	case err == nil:
		return body, deadline.SetReadDeadline(time.Time{})
	case errors.As(err, &ours):
		return nil, ours
	case errors.As(err, new(*http.MaxBytesError)):
		return nil, c.tooLarge()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, refusal.New(refusal.InvalidRequest, "", fmt.Sprintf("the body did not arrive whole within %v", c.settings.BodyTimeout))
	case c.r.Context().Err() != nil:
		return nil, c.r.Context().Err()
	}
	return nil, refusal.New(refusal.InvalidRequest, "", "the body did not arrive whole")
}

// fill reads all of in, of which most bytes are expected, into a buffer that grows as they
// come. The budget of bodies has the room before it is made; beside is what the request
// holds of it apart from that.
func (c *call) fill(source io.Reader, expected, heldElsewhere int) (body []byte, err error) {
	for {
		if len(body) == cap(body) {
			if body, err = c.grow(body, expected, heldElsewhere); err != nil {
				return nil, err
			}
		}
		n, err := source.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		switch {
		case errors.Is(err, io.EOF):
			return body, nil
		case err != nil:
			return nil, err
		}
	}
}

// tooLarge refuses a body that is over max_body as it was sent.
func (c *call) tooLarge() error {
	return refusal.New(refusal.RequestTooLarge, "", fmt.Sprintf("the body is larger than %v, the most that this gateway takes", c.settings.MaxBody))
}

// decompress returns what a body is that came in a coding. All of it has come by then, so
// that no caller holds the large result while it sends the small rest. Nothing is made of
// what is over max_body.
func (c *call) decompress(coding string, sent []byte) ([]byte, error) {
	limit := int(c.settings.MaxBody)
	packed := &packedBody{}
	packed.Reset(sent)
	out, err := newDecompressor(coding, packed)
	if err != nil {
		return nil, broken(coding, err)
	}
	body, err := c.fill(io.LimitReader(&unpackedBody{out, packed}, int64(limit)+1), limit, cap(sent))
	var ours *refusal.Refusal
	switch {
	case errors.As(err, &ours):
		return nil, ours
	case err != nil:
		return nil, broken(coding, err)
	case len(body) > limit:
		return nil, refusal.New(refusal.RequestTooLarge, "", fmt.Sprintf("the body is larger than %v when it is decompressed, the most that this gateway takes", c.settings.MaxBody))
	case packed.Len() > 0:
		return nil, broken(coding, errTrailing)
	}
	return body, c.hold(min(cap(body), limit))
}

// newDecompressor returns what a body is decompressed by. A deflate body should be in
// zlib's format (RFC 9110, 8.4.1.2), and is without it from many clients.
func newDecompressor(coding string, packed *packedBody) (io.Reader, error) {
	if coding == "gzip" {
		z, err := gzip.NewReader(packed)
		if err == nil {
			z.Multistream(false) // thousands of empty members cost much and say nothing
		}
		return z, err
	}
	var head [2]byte
	_, _ = packed.ReadAt(head[:], 0) // of a shorter body the rest is zero, which is no head of zlib's
	if head[0]&0x0f == 8 && (uint(head[0])<<8|uint(head[1]))%31 == 0 {
		return zlib.NewReader(packed)
	}
	return flate.NewReader(packed), nil
}

// maxPadding is by how many bytes a compressed body may be ahead of what came out of it:
// the head of a gzip file, and what a decompressor holds back. No honest body is longer
// than its result by more, and one of empty blocks costs the most time for each byte.
const maxPadding = 256 << 10

var (
	errPadded   = errors.New("it is much longer than what it decompresses to")
	errTrailing = errors.New("something follows its end")
)

// packedBody is a compressed body that a decompressor reads.
type packedBody struct {
	bytes.Reader
	made int // bytes that came out of the decompressor
}

func (b *packedBody) check() error {
	if int(b.Size())-b.Len() > b.made+maxPadding {
		return errPadded
	}
	return nil
}

// Read reads a part of the compressed body.
func (b *packedBody) Read(p []byte) (int, error) {
	if err := b.check(); err != nil {
		return 0, err
	}
	return b.Reader.Read(p)
}

// ReadByte reads one byte of the compressed body.
func (b *packedBody) ReadByte() (byte, error) {
	if err := b.check(); err != nil {
		return 0, err
	}
	return b.Reader.ReadByte()
}

// unpackedBody is the output of a decompressor.
type unpackedBody struct {
	io.Reader
	packed *packedBody
}

// Read reads a part of the result.
func (b *unpackedBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	b.packed.made += n
	return n, err
}

// broken refuses a body that is not what its Content-Encoding says. Inspecting the
// content is a reason of status 415 too (RFC 9110, 15.5.16).
func broken(coding string, err error) error {
	fault := "it is damaged"
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		fault = "it ends too early"
	case errors.Is(err, errTrailing), errors.Is(err, errPadded):
		fault = err.Error()
	}
	return refusal.New(refusal.UnsupportedEncoding, "", fmt.Sprintf("the body cannot be decompressed (Content-Encoding: %s): %s; send it as it is, or compressed as the header says", coding, fault))
}

// Bounds in bytes of the buffers of bodies.
const (
	firstBuffer = 32 << 10 // whatever length a caller announces
	pastEnd     = 512      // room in which the end is read
)

// grow makes room for more of a body, of which most bytes are expected: as much as has
// come already, so that an announced length alone costs nothing. The budget of bodies has
// the room before it is made; beside is what the request holds of it for other things.
func (c *call) grow(body []byte, expected, heldElsewhere int) ([]byte, error) {
	size := min(max(4*len(body), firstBuffer), expected)
	if err := c.hold(heldElsewhere + size); err != nil {
		return nil, err
	}
	return append(make([]byte, 0, max(size, len(body))+pastEnd), body...), nil
}
