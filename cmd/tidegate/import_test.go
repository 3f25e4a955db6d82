package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// piped runs a command with something on its stdin.
func piped(t *testing.T, code int, in string, args ...string) (stdout, stderr string) {
	t.Helper()
	var out, log bytes.Buffer
	p := &process{env: noEnv, stdin: io.MultiReader(strings.NewReader(in)), stdout: &out, stderr: &log}
	if got := p.run(t.Context(), args); got != code {
		t.Fatalf("tidegate %s: code %d, expected %d\n%s%s", strings.Join(args, " "), got, code, &out, &log)
	}
	return out.String(), log.String()
}

// stored is a configuration with a store of its own.
func stored(t *testing.T) (file string) {
	t.Helper()
	dir := t.TempDir()
	file = filepath.Join(dir, "tidegate.yaml")
	text := "store: {dsn: 'sqlite://" + dir + "/t.db'}\nmodels: [{name: large, aliases: [big], backends: [{url: 'http://127.0.0.1:1'}]}]\n" +
		"limits: [{name: user-rate, per: user, requests: 50/1m}]\nquotas: [{name: daily, per: project, units: 1000, every: day}]\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// cli is a command line that is tried: what of its output and error must stand there.
type cli struct {
	code int
	args string
	want string
}

func (c cli) check(t *testing.T, file, in string) string {
	t.Helper()
	out, log := piped(t, c.code, in, append(strings.Fields(c.args), "--config", file)...)
	if !strings.Contains(out+log, c.want) {
		t.Errorf("tidegate %s\n%s%s\nexpected %s", c.args, out, log, c.want)
	}
	return out + log
}

// TestOwnerCommands runs each verb of users, projects, departments, keys and overrides.
func TestOwnerCommands(t *testing.T) {
	file := stored(t)
	for _, c := range []cli{
		{exitOK, "department create space", "made department space"},
		{exitOK, "project create apollo --department space", "made project apollo"},
		{exitOK, "project create gemini --department space", "made project gemini"},
		{exitOK, "user create ann --project apollo", "made user ann"},
		{exitFailed, "user create ann --project apollo", "there is a user ann already, in project apollo"},
		{exitUsage, "user create bob --project none", `there is no project "none": create it first`},
		{exitOK, "user set ann --project gemini", "gemini"},
		{exitOK, "user set ann --disable", "disabled since"},
		{exitOK, "user set ann --enable", "active"},
		{exitUsage, "user set ann --enable --disable", "either --disable or --enable"},
		{exitUsage, "user set ann", "there is no change: give project or disabled"},
		{exitUsage, "user set nobody --disable", `there is no user "nobody"`},
		{exitOK, "user list --project gemini", "ann"},
		{exitOK, "user list --json", `"project": "gemini"`},
		{exitFailed, "project delete gemini", "has users (ann): move or delete them first"},
		{exitOK, "key create --user ann --models big --ttl 30d", "expires 2"},
		{exitUsage, "key create --user ann --models none", `the configuration has no model "none"; it has large, big`},
		{exitOK, "key set ann --models large --ips 10.0.0.0/8 --tier batch --max-level L1 --name ann-ci", "ann-ci"},
		{exitOK, "key set ann-ci --models all --ips all --ttl 1d12h", "all"},
		{exitOK, "key set ann-ci --expires-at 2099-01-01T00:00:00Z", "2099-01-01"},
		{exitUsage, "key set ann-ci", "there is no change"},
		{exitUsage, "key set ann-ci --models none", "has no model"},
		{exitUsage, "key set ann-ci --models=", "--models: is empty"},
		{exitUsage, "key create --user ann --ips=", "--ips: is empty"},
		{exitUsage, "key set ann-ci --ttl soon", "ttl: must be a duration from 1s to 36500d such as 30d"},
		{exitUsage, "key rotate ann-ci --overlap soon", "--overlap: expected a duration such as"},
		{exitOK, "override set user-rate --user ann --requests 200/1m --burst 5", "set user-rate of user ann: burst 5, requests 200/1m"},
		{exitOK, "override set daily --project gemini --units 5", "units 5"},
		{exitUsage, "override set user-rate --user ann --requests 5", "requests: must be a count and a window"},
		{exitUsage, "override set none --user ann --requests 5/1m", "none"},
		{exitUsage, "override set user-rate --requests 5/1m", "say whom it is for"},
		{exitUsage, "override set user-rate --user ann --project x --requests 5/1m", "not two"},
		{exitOK, "override list", "burst 5, requests 200/1m"},
		{exitOK, "override list --json", `"requests": "200/1m"`},
		{exitOK, "override delete user-rate --user ann", "deleted user-rate of user ann"},
		{exitUsage, "override delete user-rate --user ann", "there is no override"},
		{exitOK, "user delete ann", "revoked ann-ci"},
		{exitUsage, "user set ann --disable", "was deleted on"},
		{exitOK, "user create ann --project gemini", "made user ann#2"},
		{exitOK, "user list", "ann#2"},
		{exitOK, "key create --user ann", "of user ann#2"},
		{exitOK, "key revoke --user ann", "revoked ann#2"},
		{exitOK, "key revoke --user ann", "no key of the user was good any more"},
		{exitOK, "user delete ann", "deleted user ann"},
		{exitOK, "project delete gemini", "deleted project gemini"},
		{exitOK, "project set apollo --department default --disable", "x"},
	} {
		if c.want == "x" { // there is no department default here
			c.code, c.want = exitUsage, `there is no department "default"`
		}
		c.check(t, file, "")
	}
}

// TestRevokeSecret revokes a key by its text, which is nowhere printed.
func TestRevokeSecret(t *testing.T) {
	file := stored(t)
	out, _ := piped(t, exitOK, "", "key", "create", "--config", file, "--user", "ann")
	secret := strings.TrimSpace(out)
	for _, c := range []struct {
		code     int
		in, want string
	}{
		{exitOK, "Bearer " + secret + "\n", "revoked ann"},
		{exitFailed, secret, "revoked already"},
		{exitUsage, "", "no key came from stdin"},
		{exitUsage, "hunter2\n", "is not a key"},
		{exitUsage, "tg-" + strings.Repeat("0", 43), "no key of this store has that text"},
	} {
		said := cli{c.code, "key revoke --secret", c.want}.check(t, file, c.in)
		if strings.Contains(said, secret) || strings.Contains(said, "hunter2") {
			t.Errorf("the text is shown: %s", said)
		}
	}
	cli{exitUsage, "key revoke --secret " + secret, "never from the command line"}.check(t, file, "")
	cli{exitUsage, "key revoke --secret --user ann", "give one of"}.check(t, file, secret)
}

// TestImport imports users, keys and overrides: twice alike, and not at all where a line
// is wrong.
func TestImport(t *testing.T) {
	file := stored(t)
	list := "\ufeffuser,project,key,ttl,models,tier\nann,apollo,ann-ci,30d,large;big,batch\n# a note\nbob,apollo,,,,\ncal,,cal-1,,all,\n"
	count := func() string {
		users, _ := piped(t, exitOK, "", "user", "list", "--config", file)
		keys, _ := piped(t, exitOK, "", "key", "list", "--config", file)
		return users + keys
	}
	piped(t, exitOK, "", "department", "create", "space", "--config", file)
	empty := count()
	out, log := piped(t, exitOK, list, "user", "import", "-", "--config", file, "--dry-run")
	if out != "" || !strings.Contains(log, "line 2: would have made key ann-ci") || count() != empty {
		t.Errorf("dry run: %s%s", out, log)
	}
	out, log = piped(t, exitOK, list, "user", "import", "-", "--config", file)
	if !regexp.MustCompile(`(?s)^user,key,secret\nann,ann-ci,tg-\w{43}\ncal,cal-1,tg-\w{43}\n$`).MatchString(out) || !strings.Contains(log, "line 4: made user bob") {
		t.Errorf("%s%s", out, log)
	}
	after := count()
	if out, log = piped(t, exitOK, list, "user", "import", "-", "--config", file); out != "" || !strings.Contains(log, "3 line(s), 3 of them were so already") || count() != after {
		t.Errorf("again: %s%s", out, log)
	}
	out, log = piped(t, exitOK, "user,project,key,models,max_level\nann,gemini,ann-ci,all,L1\n", "user", "import", "-", "--config", file)
	for _, want := range []string{"made project gemini", "moved user ann to project gemini", "changed key ann-ci"} {
		if !strings.Contains(log, want) {
			t.Errorf("%q is not said: %s%s", want, out, log)
		}
	}
	after = count()
	for in, wants := range map[string][]string{
		"user,project,key,tier\ndee,apollo,dee-1,gold\neve,apollo,,\nann!,apollo,,\nfay,apollo,ann-ci,\n": {"line 2: tier:", "line 4: user:", "line 5: the name ann-ci belongs to a key of user ann", "nothing was changed: mend 3 line(s)"},
		"user,key,models\ndee,dee-1,none\ndee,,large\n":                                                   {"line 2: models: the configuration has no model \"none\"", "line 3: models: is of a key", "mend 2 line(s)"},
		"user,project\ndee,apollo\ndee,gemini\n":                                                          {"line 3: the user dee is in project"},
		"user,project,department\ndee,apollo,space\n":                                                     {"line 2: the project apollo is in department default"},
		"user,key,ips\ndee,dee-1,;\n":                                                                     {`line 2: ips: ";" lists nothing`},
		"user,key,tier\ndee,dee-1,batch\ndee,dee-1,standard\n":                                            {"line 3: the key dee-1 stands in line 2"},
		"user,colour\ndee,red\n":                                                                          {`line 1: the column "colour" is unknown`},
		"project\napollo\n":                                                                               {"there is no column user"},
		"user,project\ndee\n":                                                                             {"line 2: has 1 cells, and line 1 names 2 columns"},
		"":                                                                                                {"the first line must name the columns"},
	} {
		out, log := piped(t, exitUsage, in, "user", "import", "-", "--config", file)
		for _, want := range wants {
			if out != "" || !strings.Contains(log, want) {
				t.Errorf("%q: %s%s; expected %s", in, out, log, want)
			}
		}
		if count() != after {
			t.Errorf("%q: something was done", in)
		}
	}
	over := "rule,of,name,requests,units\nuser-rate,user,ann,200/1m,\ndaily,project,apollo,,5000\n"
	cli{exitOK, "override import - --dry-run", "line 2: would have set user ann user-rate"}.check(t, file, over)
	cli{exitOK, "override import -", "line 3: set project apollo daily"}.check(t, file, over)
	cli{exitOK, "override import -", "2 of them were so already"}.check(t, file, over)
	cli{exitUsage, "override import -", "line 3: the same rule and subject stand in line 2"}.check(t, file, "rule,of,name,requests\nuser-rate,user,x,1/1m\nuser-rate,user,x,2/1m\n")
	cli{exitUsage, "override import -", "line 2:"}.check(t, file, "rule,of,name,requests\nnone,user,x,1/1m\n")
	if out, _ := piped(t, exitOK, "", "override", "list", "--config", file); strings.Contains(out, " x ") {
		t.Errorf("half of it was done: %s", out)
	}
}
