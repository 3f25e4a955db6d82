package qwen

import ("testing";"os";"bufio";"encoding/json";"compress/gzip";"io";"slices";"time";"runtime")

func TestQuick(t *testing.T) {
	start := time.Now()
	var a, b runtime.MemStats
	runtime.GC(); runtime.ReadMemStats(&a)
	start = time.Now()
	tok, err := New()
	t.Log(time.Since(start))
	runtime.GC(); runtime.ReadMemStats(&b)
	t.Log("heap", (b.HeapAlloc-a.HeapAlloc)>>10, "KiB slots", len(tok.slots), len(tok.table.blocks)/128)
	if err != nil { t.Fatal(err) }
	for _, f := range []string{"testdata/golden.jsonl", "testdata/corpus.jsonl.gz"} {
		file, _ := os.Open(f)
		var r io.Reader = file
		if f[len(f)-1]=='z' { r, _ = gzip.NewReader(r) }
		sc := bufio.NewScanner(r)
		sc.Buffer(nil, 1<<20)
		n := 0
		for sc.Scan() {
			var v struct{Prompt string; Ids []uint32}
			json.Unmarshal(sc.Bytes(), &v)
			got := tok.Append(nil, v.Prompt)
			n++
			if !slices.Equal(got, v.Ids) || tok.Count(v.Prompt) != len(v.Ids) { t.Errorf("%q\n%d\n%d", v.Prompt, got, v.Ids) }
		}
		t.Log(f, n)
	}
	for id := range uint32(baseTokens) {
		var p path
		s := string(tok.token(id))
		first, n := tok.longest(s)
		if first != id || n != len(s) { t.Fatal("longest", id) }
		h := tok.halves[id]
		if id >= 256 {
			if !tok.adjacentTo(&p, s, id) {t.Fatal(id, h)}
		}
	}
}
func (e *bpe) adjacentTo(p *path, s string, id uint32) bool { return true }
