package docs

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"tidegate/gateway/gatewaytest/stack"
)

// browserPage is a page that runs the script of docs/clients.md and sends what it
// prints to where the page came from.
const browserPage = `<!doctype html><script type="module">
const lines = [];
console.log = (...words) => lines.push(words.join(" "));
try {
  await (async () => {
SCRIPT
  })();
} catch (e) { lines.push("failed: " + e.message); }
await fetch("/printed", { method: "POST", body: lines.join("\n") });
</script>`

// browser finds a browser of Chromium's family.
func browser(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Skip("there is no chromium for pages in a browser; Node runs their script in TestDocs")
	return ""
}

// pageScript is the script of a page in docs/clients.md, and what the page says that it
// prints.
func pageScript(t *testing.T) *block {
	t.Helper()
	for _, b := range blocksOf(t, "docs/clients.md") {
		if b.lang == "js" && strings.HasPrefix(b.text, "const key =") && b.shows != nil {
			return b
		}
	}
	t.Fatal("docs/clients.md has no script of a page")
	return nil
}

// TestBrowserPage runs the script of docs/clients.md in a browser: in a page whose origin
// server.cors names, and in the same page under another origin.
func TestBrowserPage(t *testing.T) {
	chromium, script := browser(t), pageScript(t)
	printed := make(chan string, 1)
	var page string
	pages := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/":
			w.Header().Set("Content-Type", "text/html")
			_, _ = io.WriteString(w, page)
		case "/printed":
			text, _ := io.ReadAll(r.Body)
			printed <- string(text)
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(pages.Close)
	f := kit.Start(t, kit.StartServers(t, nil), stack.Config{Server: []string{"cors: {origins: ['" + pages.URL + "']}"}})
	page = strings.Replace(browserPage, "SCRIPT", (&settings{front: f, sims: f.Servers}).place(script.text), 1)
	for name, c := range map[string]struct{ url, shown string }{
		"allowed":        {pages.URL, script.shows.text},
		"another origin": {strings.Replace(pages.URL, "127.0.0.1", "localhost", 1), "failed: Failed to fetch"},
	} {
		t.Run(name, func(t *testing.T) {
			profile, err := os.MkdirTemp("", "tidegate-browser-*")
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(profile) //nolint:errcheck // a browser that is ending may still write there
			ctx, stop := context.WithCancel(t.Context())
			cmd := exec.CommandContext(ctx, chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
				"--disable-background-networking", "--remote-debugging-port=0", "--user-data-dir="+profile, c.url+"/")
			// Its own processes end with it.
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer cmd.Wait() //nolint:errcheck // it is stopped
			defer stop()
			select {
			case text := <-printed:
				if line, ok := stack.Shows(text, c.shown); !ok {
					t.Errorf("nothing like\n%s\nin\n%s", line, text)
				}
			case <-time.After(stack.Patience):
				t.Fatal("the page never ran to its end")
			}
		})
	}
}
