// Command generate writes the dashboards of deploy/grafana/dashboards. boards.go has them
// in the few words that differ from panel to panel; model.go turns those into Grafana's
// dashboard model, schema version 39, which Grafana 10.4 writes and later ones read.
package main

import (
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: generate DIRECTORY")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// write writes each dashboard to a file of dir.
func write(dir string) error {
	for _, b := range boards() {
		if err := os.WriteFile(b.path(dir), b.render(), 0o644); err != nil { //nolint:gosec // Grafana reads it as another user
			return err
		}
	}
	return nil
}

// path returns the name of the dashboard's file in dir.
func (b *board) path(dir string) string { return filepath.Join(dir, b.uid+".json") }
