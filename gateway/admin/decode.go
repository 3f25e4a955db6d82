package admin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	"tidegate/gateway/openai"
	"tidegate/gateway/refusal"
)

// decode reads the body into v, which has a field for every member that it may have. The
// body may be left out unless it is required.
func (r *Request) decode(v any, required bool) error {
	if r.ContentLength == 0 && !required {
		return nil
	}
	raw, err := r.ReadBody()
	if err != nil {
		return err
	}
	return decodeStrict(bytes.TrimPrefix(raw, []byte(openai.ByteOrderMark)), v)
}

// decodeStrict reads one JSON object into what v points to. Unlike encoding/json alone
// it tells capital letters from small ones, and it refuses a name that stands twice,
// NUL and what is no UTF-8: a body that two readers read in two ways, or that no
// database takes. Its errors are refusals and quote no value.
func decodeStrict(raw []byte, v any) error {
	if !utf8.Valid(raw) {
		return refusal.New(refusal.InvalidRequest, "", "the body is no valid UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	if err := checkMembers(d, reflect.TypeOf(v), "", 0); err != nil {
		if r := (*refusal.Refusal)(nil); errors.As(err, &r) {
			return r
		}
		return refusal.New(refusal.InvalidRequest, "", "the body is no valid JSON")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return refusal.New(refusal.InvalidRequest, "", "the body must be one JSON object and nothing after it")
	}
	err := json.Unmarshal(raw, v)
	if kind := (*json.UnmarshalTypeError)(nil); errors.As(err, &kind) {
		field := kind.Field
		if field == "" {
			field = "the body"
		}
		return refusal.New(refusal.InvalidRequest, kind.Field, fmt.Sprintf("%s: expected %s, not %s", field, jsonKind(kind), kind.Value))
	}
	if err != nil {
		return refusal.New(refusal.InvalidRequest, "", "the body is no valid JSON")
	}
	return nil
}

// checkMembers reads one value and checks the names of its members, and its texts,
// before it is decoded into a type. A value of another kind than the type is left to
// the decoder, and depth counts what it stands in. Its errors are refusals or the
// decoder's.
func checkMembers(d *json.Decoder, target reflect.Type, path string, depth int) error {
	t, err := d.Token()
	if err != nil {
		return err
	}
	if depth > maxDepth {
		return refusal.New(refusal.InvalidRequest, path, fmt.Sprintf("the body has more than %d lists and objects within each other", maxDepth))
	}
	for target != nil && target.Kind() == reflect.Pointer {
		target = target.Elem()
	}
	switch t := t.(type) {
	case string:
		if !readable(t) {
			return refusal.New(refusal.InvalidRequest, path, path+": holds the character NUL (\\u0000), which no name or text may have")
		}
	case json.Delim:
		if t == '{' {
			err = checkObject(d, target, path, depth)
		} else {
			var item reflect.Type
			if target != nil && target.Kind() == reflect.Slice {
				item = target.Elem()
			}
			for i := 0; d.More() && err == nil; i++ {
				err = checkMembers(d, item, fmt.Sprintf("%s[%d]", path, i), depth+1)
			}
		}
		if err == nil {
			_, err = d.Token() // the end of it
		}
	}
	return err
}

func checkObject(d *json.Decoder, target reflect.Type, path string, depth int) error {
	var seen []string
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return err
		}
		name, _ := t.(string) // of a member it always is one
		if len(name) > maxMemberName {
			return refusal.New(refusal.InvalidRequest, path, fmt.Sprintf("a field has a name of more than %d bytes", maxMemberName))
		}
		full := name
		if path != "" {
			full = path + "." + name
		}
		var field reflect.Type
		if target != nil && target.Kind() == reflect.Struct {
			var known bool
			if field, known = member(target, name); !known {
				return unknownMember(target, name, full)
			}
		}
		if slices.Contains(seen, name) {
			return refusal.New(refusal.InvalidRequest, full, "the field "+refusal.Quote(full)+" stands twice: send it once")
		}
		seen = append(seen, name)
		if len(seen) > maxMembers {
			return refusal.New(refusal.InvalidRequest, path, fmt.Sprintf("an object has more than %d members", maxMembers))
		}
		if err := checkMembers(d, field, full, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// Bounds of a body of administration.
const (
	maxMembers    = 100 // of an object, which are compared with each other
	maxMemberName = 256 // bytes
	maxDepth      = 8   // lists and objects within each other: each is a call, and no body needs more than two
)

// member finds the field that a member of exactly that name is decoded into.
func member(target reflect.Type, name string) (reflect.Type, bool) {
	for i := range target.NumField() {
		f := target.Field(i)
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if tag == name && tag != "-" && tag != "" {
			return f.Type, true
		}
	}
	return nil, false
}

// unknownMember refuses a member; one that differs from a known one in capital letters
// alone is named.
func unknownMember(target reflect.Type, name, full string) error {
	for i := range target.NumField() {
		tag, _, _ := strings.Cut(target.Field(i).Tag.Get("json"), ",")
		if tag != "-" && strings.EqualFold(tag, name) {
			return refusal.New(refusal.InvalidRequest, name, fmt.Sprintf("unknown field %s: write it %s", refusal.Quote(full), tag))
		}
	}
	return refusal.New(refusal.InvalidRequest, name, "unknown field "+refusal.Quote(full))
}

// jsonKind names what was expected as a writer of JSON would.
func jsonKind(e *json.UnmarshalTypeError) string {
	switch name := e.Type.Kind().String(); name {
	case "bool":
		return "true or false"
	case "slice":
		return "a list"
	case "struct":
		return "an object"
	case "string":
		return "text"
	}
	return "a number"
}

// checkTexts refuses a path or a query that holds NUL or is no UTF-8: no name has
// either, and a database takes neither.
func checkTexts(u *url.URL) error {
	if !readable(u.Path) {
		return refusal.New(refusal.InvalidRequest, "", "the path holds the character NUL or bytes that are no UTF-8, which no name has")
	}
	for name, values := range u.Query() {
		if !readable(name) || !readable(strings.Join(values, "")) {
			return refusal.New(refusal.InvalidRequest, strings.ToValidUTF8(name, ""), "the query "+refusal.Quote(name)+" holds the character NUL or bytes that are no UTF-8, which no name has")
		}
	}
	return nil
}

func readable(text string) bool { return utf8.ValidString(text) && !strings.ContainsRune(text, 0) }
