package channel

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"mime"
	"mime/quotedprintable"
	"net"
	"net/mail"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func certificatePEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// selfSigned is a certificate for 127.0.0.1 and the file that makes it trusted.
func selfSigned(t *testing.T) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, certificatePEM(der), 0o600); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, file
}

// post is a small SMTP server. Replies overrides what it says to a command's first word
// or whole line; an empty override makes it silent, "close" makes it hang up.
type post struct {
	certificate tls.Certificate
	implicit    bool
	noStartTLS  bool
	replies     map[string]string
	silent      func() // told when it falls silent

	mutex    sync.Mutex
	commands []string // all connections'
	messages []string // that it took
	secure   []bool   // whether over TLS, of each message
}

func (p *post) start(t *testing.T) string {
	t.Helper()
	return raw(t, func(c net.Conn) {
		if p.implicit {
			c = tls.Server(c, &tls.Config{Certificates: []tls.Certificate{p.certificate}})
		}
		p.serve(c)
	})
}

func (p *post) serve(c net.Conn) {
	in := bufio.NewReader(c)
	_, secure := c.(*tls.Conn)
	// say answers unless told otherwise, and reports whether to go on.
	say := func(what []string, usual string) bool {
		reply := usual
		for _, w := range what {
			if r, ok := p.replies[w]; ok {
				reply = r
			}
		}
		switch reply {
		case "close":
			return false
		case "":
			if p.silent != nil {
				p.silent()
			}
			io.Copy(io.Discard, in)
			return false
		}
		_, err := io.WriteString(c, reply+"\r\n")
		return err == nil
	}
	if !say([]string{"greeting"}, "220 mail.example ESMTP") {
		return
	}
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimRight(line, "\r\n")
		word, _, _ := strings.Cut(line, " ")
		p.mutex.Lock()
		p.commands = append(p.commands, line)
		p.mutex.Unlock()
		usual := "250 2.0.0 ok"
		switch word {
		case "EHLO":
			usual = "250-mail.example\r\n250-8BITMIME\r\n250-ENHANCEDSTATUSCODES"
			if secure {
				usual += "\r\n250 AUTH PLAIN"
			} else if !p.noStartTLS {
				usual += "\r\n250 STARTTLS"
			} else {
				usual += "\r\n250 SIZE 1000000"
			}
		case "STARTTLS":
			usual = "220 2.0.0 go ahead"
		case "AUTH":
			usual = "235 2.7.0 welcome"
		case "DATA":
			usual = "354 go ahead"
		case "QUIT":
			usual = "221 2.0.0 bye"
		}
		if !say([]string{word, line}, usual) {
			return
		}
		switch word {
		case "STARTTLS":
			c = tls.Server(c, &tls.Config{Certificates: []tls.Certificate{p.certificate}})
			in, secure = bufio.NewReader(c), true
		case "DATA":
			if p.replies["DATA"] == "" && (!p.take(in, secure) || !say([]string{"."}, "250 2.0.0 queued")) {
				return
			}
		case "QUIT":
			return
		}
	}
}

// take reads a message and keeps it unless it is to be refused.
func (p *post) take(in *bufio.Reader, secure bool) bool {
	var text strings.Builder
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return false
		}
		if line == ".\r\n" {
			break
		}
		text.WriteString(strings.TrimPrefix(line, "."))
	}
	if !strings.HasPrefix(p.replies["."], "5") {
		p.mutex.Lock()
		defer p.mutex.Unlock()
		p.messages, p.secure = append(p.messages, text.String()), append(p.secure, secure)
	}
	return true
}

// saw is what has come so far.
func (p *post) saw() (commands, messages []string) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	return slices.Clone(p.commands), slices.Clone(p.messages)
}

// postbox is a channel to a small server.
func postbox(t *testing.T, p *post, change func(*Config)) *Channel {
	t.Helper()
	certificate, file := selfSigned(t)
	p.certificate = certificate
	c := Config{
		Type: Email, CAFile: file, Username: "tidegate", PasswordEnv: "P", Password: "pa55word-in-mail",
		From: "Tidegate <tidegate@example.com>", To: []string{"ops@example.com", "Boss <boss@example.com>"},
	}
	if change != nil {
		change(&c)
	}
	c.Server = p.start(t)
	return newChannel(t, c)
}

func TestMail(t *testing.T) {
	for name, implicit := range map[string]bool{"starttls": false, "implicit": true} {
		t.Run(name, func(t *testing.T) {
			p := &post{implicit: implicit}
			ch := postbox(t, p, func(c *Config) {
				c.Language = Chinese
				if implicit {
					c.TLS = ImplicitTLS
				}
			})
			for _, to := range ch.Targets() {
				for range 2 {
					if err := ch.Send(t.Context(), to, sample()); err != nil {
						t.Fatal(err)
					}
				}
			}
			commands, messages := p.saw()
			if len(messages) != 4 || slices.Contains(p.secure, false) {
				t.Fatalf("%d messages, over TLS: %v", len(messages), p.secure)
			}
			plain := base64.StdEncoding.EncodeToString([]byte("\x00tidegate\x00pa55word-in-mail"))
			for _, want := range []string{"AUTH PLAIN " + plain, "MAIL FROM:<tidegate@example.com> BODY=8BITMIME", "RCPT TO:<ops@example.com>", "RCPT TO:<boss@example.com>"} {
				if !slices.Contains(commands, want) {
					t.Errorf("no %q in %q", want, commands)
				}
			}
			m, err := mail.ReadMessage(strings.NewReader(messages[0]))
			if err != nil {
				t.Fatal(err)
			}
			for header, want := range map[string]string{
				"From": `"Tidegate" <tidegate@example.com>`, "To": "<ops@example.com>", "Date": "Fri, 02 Jan 2026 03:04:05 +0000",
				"Content-Type": "text/plain; charset=UTF-8", "Content-Transfer-Encoding": "quoted-printable", "Mime-Version": "1.0",
				"Auto-Submitted": "auto-generated", "X-Tidegate-Delivery": "01JGTESTALERT",
			} {
				checkEqual(t, header, m.Header.Get(header), want)
			}
			subject, err := new(mime.WordDecoder).DecodeHeader(m.Header.Get("Subject"))
			if err != nil {
				t.Fatal(err)
			}
			checkEqual(t, "subject", subject, "Tidegate 警告：用户 alice 已使用配额 daily 的 80%")
			body, err := io.ReadAll(quotedprintable.NewReader(m.Body))
			if err != nil {
				t.Fatal(err)
			}
			checkEqual(t, "body", strings.ReplaceAll(strings.TrimSpace(string(body)), "\r\n", "\n"), Format(sample(), Chinese, noon(), withoutLinks).Text())
			var ids []string
			for _, text := range messages {
				m, err := mail.ReadMessage(strings.NewReader(text))
				if err != nil {
					t.Fatal(err)
				}
				ids = append(ids, m.Header.Get("Message-Id"))
			}
			if ids[0] != ids[1] || ids[2] != ids[3] || ids[0] == ids[2] || !strings.HasSuffix(ids[0], "@example.com>") {
				t.Errorf("Message-Ids %q: must be the same for a repetition and differ by recipient", ids)
			}
		})
	}
}

// TestMailTrouble holds what each kind of trouble is called, and that a message which
// may have arrived is called so, and no other.
func TestMailTrouble(t *testing.T) {
	for name, c := range map[string]struct {
		replies map[string]string
		change  func(*post, *Config)
		want    string // empty: delivered
		status  int
		unsure  bool
	}{
		"refused recipient":    {replies: map[string]string{"RCPT": "550 5.1.1 no such user"}, want: "sending SMTP RCPT TO command: 550 5.1.1 no such user", status: 550},
		"greylisted":           {replies: map[string]string{"RCPT": "451 4.7.1 try later"}, want: "451 4.7.1 try later", status: 451},
		"refused sender":       {replies: map[string]string{"MAIL": "553 5.7.1 not yours"}, want: "553 5.7.1 not yours", status: 553},
		"refused data":         {replies: map[string]string{"DATA": "554 5.5.1 no"}, want: "554 5.5.1 no", status: 554},
		"refused message":      {replies: map[string]string{".": "552 5.3.4 too big"}, want: "552 5.3.4 too big", status: 552},
		"hangs up at the end":  {replies: map[string]string{".": "close"}, want: "closing SMTP DATA writer", unsure: true},
		"hangs up at QUIT":     {replies: map[string]string{"QUIT": "close"}},
		"refuses QUIT":         {replies: map[string]string{"QUIT": "500 what"}},
		"hangs up at greeting": {replies: map[string]string{"greeting": "close"}, want: "the connection was closed before an answer"},
		"busy":                 {replies: map[string]string{"greeting": "421 4.3.2 busy"}, want: "421 4.3.2 busy", status: 421},
		"no SMTP":              {replies: map[string]string{"greeting": "HTTP/1.1 400 Bad Request"}, want: "HTTP/1.1 400 Bad Request"},
		"wrong password":       {replies: map[string]string{"AUTH": "535 5.7.8 bad credentials for pa55word-in-mail"}, want: "SMTP AUTH failed: 535 5.7.8 bad credentials for ***", status: 535},
		"no STARTTLS":          {change: func(p *post, _ *Config) { p.noStartTLS = true }, want: "does not support STARTTLS"},
		"STARTTLS refused":     {replies: map[string]string{"STARTTLS": "454 4.7.0 not now"}, want: "454 4.7.0 not now", status: 454},
		"unknown authority":    {change: func(_ *post, c *Config) { c.CAFile = "" }, want: "certificate"},
		"implicit, unknown":    {change: func(p *post, c *Config) { p.implicit, c.TLS, c.CAFile = true, ImplicitTLS, "" }, want: "certificate"},
		"in the clear, asked for": {change: func(p *post, c *Config) {
			p.noStartTLS, c.TLS, c.Username, c.Password, c.PasswordEnv = true, NoTLS, "", "", ""
		}},
	} {
		t.Run(name, func(t *testing.T) {
			p := &post{replies: c.replies}
			ch := postbox(t, p, func(config *Config) {
				if c.change != nil {
					c.change(p, config)
				}
			})
			if c.want == "" {
				if err := ch.Send(t.Context(), "ops@example.com", sample()); err != nil {
					t.Fatal(err)
				}
				if _, messages := p.saw(); len(messages) != 1 {
					t.Fatalf("%d messages", len(messages))
				}
				return
			}
			e := sendError(t, t.Context(), ch)
			if !strings.Contains(e.Text, c.want) || e.Status != c.status || e.Unsure != c.unsure {
				t.Errorf("got  %#v\nwant %q, status %d, unsure %v", e, c.want, c.status, c.unsure)
			}
			commands, messages := p.saw()
			if strings.Contains(e.Error(), "pa55word") || len(messages) != 0 && !c.unsure {
				t.Errorf("%s; %d messages", e, len(messages))
			}
			if slices.ContainsFunc(commands, func(s string) bool { return strings.HasPrefix(s, "AUTH") }) && p.noStartTLS {
				t.Error("the password went in the clear")
			}
		})
	}
}

// TestMailOneRefused holds that who is refused keeps nobody else from being told.
func TestMailOneRefused(t *testing.T) {
	p := &post{replies: map[string]string{"RCPT TO:<ops@example.com>": "550 5.1.1 gone"}}
	ch := postbox(t, p, nil)
	var failed []string
	for _, to := range ch.Targets() {
		if ch.Send(t.Context(), to, sample()) != nil {
			failed = append(failed, to)
		}
	}
	if _, messages := p.saw(); fmt.Sprint(failed) != "[ops@example.com]" || len(messages) != 1 || !strings.Contains(messages[0], "boss@example.com") {
		t.Errorf("failed %v, messages %q", failed, messages)
	}
}

// TestMailSilent cancels when the server has fallen silent, at every step.
func TestMailSilent(t *testing.T) {
	for _, step := range []string{"greeting", "EHLO", "STARTTLS", "AUTH", "MAIL", "RCPT", "DATA", "."} {
		t.Run(step, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			p := &post{replies: map[string]string{step: ""}, silent: cancel}
			e := sendError(t, ctx, postbox(t, p, nil))
			if e.Unsure != (step == ".") || e.Status != 0 {
				t.Errorf("%#v", e)
			}
		})
	}
}

// TestMailPrivate holds that a mail server inside is not spoken to unless it may be.
func TestMailPrivate(t *testing.T) {
	p := &post{}
	ch := postbox(t, p, nil)
	ch.dialer.private = false
	if e := sendError(t, t.Context(), ch); e.Text != errPrivate.Error() {
		t.Errorf("%#v", e)
	}
}
