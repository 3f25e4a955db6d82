//go:build goexperiment.jsonv2

package jsonwalk

import (
	"encoding/json/v2"
	"testing"
)

func decodeV2[T any](raw []byte) (v T, err error) { return v, json.Unmarshal(raw, &v) }

func BenchmarkEventV2(b *testing.B) { benchmarkReader(b, benchEvent, wantFigures(), decodeV2[figures]) }

func BenchmarkRequestV2(b *testing.B) {
	benchmarkReader(b, benchRequest(), wantFields(), decodeV2[fields])
}
