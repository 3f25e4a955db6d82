package main

import (
	"cmp"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"tidegate/gateway/refusal"
)

// explainYAML says what of a file cannot be read, in the words of its author, one text
// for each fault.
func explainYAML(file string, source []byte, err error) (out []string) {
	faults := flatten(err)
	slices.SortStableFunc(faults, func(a, b error) int { return comparePlaces(asFault(a), asFault(b)) }) // the library finds them in any order
	for _, err := range faults {
		f := asFault(err)
		if f == nil {
			out = append(out, file+": "+redact(err.Error()))
			continue
		}
		message := redact(f.message)
		if f.path != "" && !strings.HasPrefix(message, "unknown key") {
			message = f.path + ": " + message
		}
		out = append(out, fmt.Sprintf("%s:%d:%d: %s\n%s", file, f.line, f.column, message, excerpt(source, f.line, f.column)))
	}
	return out
}

// comparePlaces orders faults by their places in the file; one without a place comes first.
func comparePlaces(a, b *yamlFault) int {
	var nowhere yamlFault
	a, b = cmp.Or(a, &nowhere), cmp.Or(b, &nowhere)
	return cmp.Or(cmp.Compare(a.line, b.line), cmp.Compare(a.column, b.column))
}

// kindInWords names a Go type, or a kind of node of the YAML library, as a writer of
// YAML would.
func kindInWords(kind string) string {
	switch {
	case kind == "time.Duration":
		return "a duration such as 10s"
	case kind == "string", kind == "scalar":
		return "text"
	case kind == "bool", kind == "boolean":
		return "true or false"
	case kind == "null":
		return "nothing"
	case kind == "float", kind == "inf", kind == "nan", strings.HasPrefix(kind, "float"):
		return "a number"
	case kind == "int", strings.HasPrefix(kind, "int"), strings.HasPrefix(kind, "uint"):
		return "a whole number"
	case kind == "sequence", strings.HasPrefix(kind, "[]"):
		return "a list"
	case kind == "mapping", strings.HasPrefix(kind, "map"), strings.Contains(kind, "."):
		return "a mapping of keys to values"
	}
	return kind
}

// inWords says what the YAML library refuses in the words of a writer of YAML. path is
// where it stands, such as models[0].probe.
func inWords(message, path string) string {
	if m := regexp.MustCompile(`^unknown field "(.*)"$`).FindStringSubmatch(message); m != nil {
		return unknownKey(m[1], path)
	}
	if m := regexp.MustCompile(`^cannot unmarshal (\S+) .*\( overflow \)$`).FindStringSubmatch(message); m != nil {
		return "the number " + m[1] + " is out of range"
	}
	if m := regexp.MustCompile(`^cannot unmarshal (\S+).* of type (\S+)$`).FindStringSubmatch(message); m != nil {
		return fmt.Sprintf("expected %s, not %s", kindInWords(m[2]), kindInWords(m[1]))
	}
	if m := regexp.MustCompile(`^(.+) was used where (.+) is expected$`).FindStringSubmatch(message); m != nil {
		return fmt.Sprintf("expected %s, not %s", kindInWords(m[2]), kindInWords(m[1]))
	}
	switch {
	case strings.Contains(message, wantsScalar):
		return "expected a single value, not a list or a mapping"
	case message == "value is not allowed in this context":
		return "this cannot stand here: is the line indented as those beside it?"
	case message == "unexpected key name":
		return "this is no key with a value: is a colon missing after it?"
	case strings.HasPrefix(message, "found character '\t'"):
		return "a tab cannot indent a line: use spaces"
	}
	return message
}

// unknownKey says that a key is not known at its path, and which one may be meant: one
// of the same place, or the same one at another place.
func unknownKey(key, path string) string {
	message := fmt.Sprintf("unknown key %q", key)
	parent := path[:max(strings.LastIndexByte(path, '.'), 0)]
	paths := pathsOf(reflect.TypeFor[config](), "")
	var siblings, anywhere, places []string
	for _, p := range paths {
		dot := strings.LastIndexByte(p, '.')
		name, holder := p[dot+1:], p[:max(dot, 0)]
		anywhere = append(anywhere, name)
		if holder == regexp.MustCompile(`\[\d+\]`).ReplaceAllString(parent, "[]") {
			siblings = append(siblings, name)
		}
		if name == key {
			places = append(places, p)
		}
	}
	if near := nearest(key, siblings); near != "" {
		return message + fmt.Sprintf("; expected %q?", near)
	}
	if len(places) > 0 {
		return message + " here; there is " + strings.Join(places[:min(len(places), 3)], ", ")
	}
	if near := nearest(key, anywhere); near != "" {
		return message + fmt.Sprintf("; expected %q?", near)
	}
	return message
}

// excerpt shows a line without secrets and points at a column of it.
func excerpt(source []byte, line, column int) string {
	lines := strings.Split(strings.TrimPrefix(string(source), "\ufeff"), "\n")
	if line < 1 || line > len(lines) {
		return ""
	}
	return fmt.Sprintf("    %s\n    %s^", hideValues(strings.TrimRight(lines[line-1], "\r")), strings.Repeat(" ", max(column-1, 0)))
}

// hidden stands in the place of what may be a secret.
const hidden = "***"

// redact hides what may be a secret in the text of a fault: passwords and tokens of
// URLs, and words that look like a key. The writer may have forgotten to encode an @ or
// a slash of a password.
func redact(text string) string {
	text = regexp.MustCompile(`(://[^:@/\s"']*:)[^"'\n]*@`).ReplaceAllString(text, "$1"+hidden+"@")
	text = regexp.MustCompile(`(://)[^:@/?#\s"']+@`).ReplaceAllString(text, "$1"+hidden+"@")
	text = regexp.MustCompile(`([^\s:@"'/]+:)[^\s@"'/][^\s@"']*@`).ReplaceAllString(text, "$1"+hidden+"@")
	text = regexp.MustCompile(`(?i)([\w-]*(?:password|passwd|secret|token|key|sign)=)[^&\s"']+`).ReplaceAllString(text, "$1"+hidden)
	text = regexp.MustCompile(`\b(?:sk|tg)-[\w-]{8,}`).ReplaceAllString(text, hidden)
	long := regexp.MustCompile(`(^|[^\w/.-])(\w{24,})`) // and no part of a path
	return long.ReplaceAllStringFunc(text, func(match string) string {
		m := long.FindStringSubmatch(match)
		if strings.ContainsAny(m[2], "0123456789") && !strings.Contains(m[2], "_") {
			return m[1] + hidden
		}
		return match
	})
}

// hideValues hides what may be a secret in a line of a configuration file. A setting of
// the gateway holds none, but for names of variables and files in whose place somebody
// wrote the secret itself, and paths of URLs; a key that is no setting may hold one.
func hideValues(line string) string {
	known := keysOf(reflect.TypeFor[config]())
	member := regexp.MustCompile(`([\w-]+)(["']?\s*:\s+|["']\s*:)("[^"]*"?|'[^']*'?|[^\s\[{,}\]#][^,}\]#]*)`)
	line = member.ReplaceAllStringFunc(line, func(match string) string {
		m := member.FindStringSubmatch(match)
		key, value := strings.ToLower(m[1]), strings.Trim(strings.TrimSpace(m[3]), `"'`)
		secret := regexp.MustCompile(`(password|passwd|passphrase|pwd|secret|token|key|authorization|credential)s?$`).MatchString(key)
		switch {
		case secret && !slices.Contains(known, key), key == "sha256",
			strings.HasSuffix(key, "_env") && !plainVariable(value), strings.HasSuffix(key, "_file") && !plainFile(value):
			return m[1] + m[2] + hidden
		case key == "url", key == "url_env", key == "dsn":
			return m[1] + m[2] + regexp.MustCompile(`(https?://[^/\s"']+/)[^\s"']+`).ReplaceAllString(m[3], "$1"+hidden)
		}
		return match
	})
	return redact(line)
}

// plainVariable reports whether a text looks like the name of an environment variable,
// and not like the secret that somebody put in its place.
func plainVariable(name string) bool {
	return regexp.MustCompile(`^[A-Z][A-Z0-9]{0,19}(_[A-Z0-9]{1,20})*$`).MatchString(name)
}

// plainFile reports whether a text looks like the path of a file.
func plainFile(name string) bool {
	return strings.ContainsAny(name, `/\.`) || len(name) < 12
}

// locate finds the line of each fault, whose text begins with its path.
func locate(file string, source []byte, faults error) []string {
	body, err := document(source)
	var out []string
	for _, fault := range flatten(faults) {
		path, message, _ := strings.Cut(fault.Error(), ": ")
		message = redact(message)
		line, column := 0, 0
		if err == nil && body != nil {
			line, column = position(body, path)
		}
		if strings.HasPrefix(path, "environment variable ") {
			out = append(out, path+": "+message)
			continue
		}
		if line == 0 {
			out = append(out, fmt.Sprintf("%s: %s: %s", file, path, message))
			continue
		}
		out = append(out, fmt.Sprintf("%s:%d:%d: %s: %s\n%s", file, line, column, path, message, excerpt(source, line, column)))
	}
	return out
}

// pathsOf lists the paths of all settings below a type, with [] for the elements of a
// list.
func pathsOf(t reflect.Type, parent string) (paths []string) {
	switch t.Kind() {
	case reflect.Slice:
		return pathsOf(t.Elem(), parent+"[]")
	case reflect.Pointer:
		return pathsOf(t.Elem(), parent)
	case reflect.Struct:
		for i := range t.NumField() {
			f := t.Field(i)
			switch key := yamlKey(f); key {
			case "-":
			case "":
				if strings.Contains(f.Tag.Get("yaml"), "inline") {
					paths = append(paths, pathsOf(f.Type, parent)...)
				}
			default:
				path := strings.TrimPrefix(parent+"."+key, ".")
				paths = append(append(paths, path), pathsOf(f.Type, path)...)
			}
		}
	}
	return paths
}

// keysOf lists every key that a configuration may have.
func keysOf(t reflect.Type) (keys []string) {
	switch t.Kind() {
	case reflect.Slice, reflect.Pointer:
		return keysOf(t.Elem())
	case reflect.Struct:
		for i := range t.NumField() {
			if key := yamlKey(t.Field(i)); key != "" && key != "-" {
				keys = append(keys, key)
			}
			keys = append(keys, keysOf(t.Field(i).Type)...)
		}
	}
	return keys
}

func yamlKey(f reflect.StructField) string {
	key, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
	return key
}

// nearest is the key that differs from what was written by at most two letters, and not by
// all of them.
func nearest(written string, keys []string) string {
	best, bound := "", min(3, len(written))
	for _, k := range keys {
		if d := refusal.Distance(written, k); d < bound {
			best, bound = k, d
		}
	}
	return best
}
