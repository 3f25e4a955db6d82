package qwen
import ("testing";"os")
func BenchmarkReal(b *testing.B) {
	tok, err := New(); if err != nil { b.Fatal(err) }
	for _, f := range []string{"en","zh","code"} {
		d, _ := os.ReadFile("/tmp/qw/"+f+".txt")
		s := string(d)
		b.Run(f, func(b *testing.B){ b.SetBytes(int64(len(s))); b.ReportAllocs(); n:=0; for b.Loop() { n=tok.Count(s) }; b.ReportMetric(float64(len(s))/float64(n),"B/tok") })
	}
}
func BenchmarkNew(b *testing.B) { for b.Loop() { New() } }
