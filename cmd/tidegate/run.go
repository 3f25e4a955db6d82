package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"tidegate/gateway/account"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1 // it ran and failed
	exitUsage  = 2 // the command line or the configuration is wrong
)

// usageError is a mistake of the one who called the command.
type usageError struct{ error }

// process holds the environment and the streams of a command.
type process struct {
	env            func(string) (string, bool)
	names          []string  // of all environment variables; none: not known
	stdin          io.Reader // nil: empty
	stdout, stderr io.Writer
}

// run is the command; it returns the exit code.
func run(ctx context.Context, args []string, env func(string) (string, bool), stdout, stderr io.Writer) int {
	return (&process{env: env, stdout: stdout, stderr: stderr}).run(ctx, args)
}

func (p *process) run(ctx context.Context, args []string) int {
	stdout, stderr := &terminal{out: p.stdout}, &terminal{out: p.stderr}
	p = &process{env: p.env, names: p.names, stdin: p.stdin, stdout: stdout, stderr: stderr}
	root := &cobra.Command{
		Use:   "tidegate",
		Short: "One front door in OpenAI's API for a fleet of vLLM servers",
		Long: "Tidegate speaks OpenAI's API to callers, shares their requests among vLLM servers,\n" +
			"and counts every token.\n\n" +
			"Exit codes: 0 success, 1 it ran and failed, 2 the command line or the configuration is wrong.",
		Example:       "  tidegate serve --backend http://localhost:8000\n  tidegate serve --config tidegate.yaml\n  tidegate demo",
		SilenceErrors: true, SilenceUsage: true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(p.alertCommand(), p.serveCommand(), p.checkCommand(), p.demoCommand(), p.keyCommand(), p.migrateCommand(), p.overrideCommand(), p.pinCommand(), p.statusCommand(), p.topCommand(), p.unpinCommand(), p.usageCommand(), p.versionCommand())
	for _, k := range account.Kinds() {
		root.AddCommand(p.ownerCommand(k))
	}
	root.Version = versionLine()
	root.SetVersionTemplate("{{.Version}}\n")
	root.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	checkArguments(root)
	called, err := root.ExecuteContextC(ctx)
	var (
		usage usageError
		conf  *configError
	)
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &conf):
		fmt.Fprintln(stderr, conf.Error())
		return exitUsage
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "tidegate: %s (see %s --help)\n", bounded(err), called.CommandPath())
		return exitUsage
	}
	fmt.Fprintf(stderr, "tidegate: %s\n", bounded(err))
	return exitFailed
}

// checkArguments makes wrong arguments of a command, and of all below it, a usageError.
// Where a command is named that is not there, the error names those that are similar.
func checkArguments(cmd *cobra.Command) {
	check := cmd.Args
	cmd.SuggestionsMinimumDistance = 2
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 && cmd.HasSubCommands() {
			text := fmt.Sprintf("unknown command %q", args[0])
			for i, name := range cmd.SuggestionsFor(args[0]) {
				text += []string{": did you mean ", " or "}[min(i, 1)] + cmd.CommandPath() + " " + name
			}
			return usageError{errors.New(text)}
		}
		if check == nil {
			return nil
		}
		if err := check(cmd, args); err != nil {
			return usageError{err}
		}
		return nil
	}
	for _, sub := range cmd.Commands() {
		checkArguments(sub)
	}
}
