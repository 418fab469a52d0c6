package main

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// newRoot builds the command tree. Commands of later releases are not registered: they are unknown, not stubs.
func newRoot(p *process) *cobra.Command {
	root := &cobra.Command{
		Use:           "skein",
		Short:         "Kafka-compatible streaming with a bucket for a disk",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return missingOrUnknown(cmd, args)
		},
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.SetIn(p.stdin)
	root.SetOut(p.stdout)
	root.SetErr(p.stderr)
	root.SetFlagErrorFunc(flagError)
	root.AddCommand(
		newDev(p), newAgent(p), newMigrate(p),
		newTopic(p), newGroup(p), newProduce(p), newConsume(p), newSegment(p), newBench(p), newVersion(p), newFsck(p),
	)
	return root
}

// parent makes a command that only groups others.
func parent(use, short string, children ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short, Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error { return missingOrUnknown(cmd, args) },
	}
	c.AddCommand(children...)
	return c
}

// missingOrUnknown is the error of a command that needs a subcommand.
func missingOrUnknown(cmd *cobra.Command, args []string) error {
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	if len(args) == 0 {
		return usagef("%s needs a command: %s", cmd.CommandPath(), strings.Join(names, ", "))
	}
	hint := "one of " + strings.Join(names, ", ")
	if near := nearest(args[0], names); near != "" {
		hint = "did you mean " + near + "?"
	}
	return usagef("unknown command %q of %s: %s", args[0], cmd.CommandPath(), hint)
}

// flagError makes flag errors usage errors; an unknown flag names the nearest one.
func flagError(cmd *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) && len(unknown.GetSpecifiedName()) > 1 {
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		if near := nearest(unknown.GetSpecifiedName(), names); near != "" {
			return usagef("%w of %s; did you mean --%s?", err, cmd.CommandPath(), near)
		}
		return usagef("%w of %s; see %s --help", err, cmd.CommandPath(), cmd.CommandPath())
	}
	return usagef("%w", err)
}

// exactArgs wants one positional argument for each name.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return usagef("%s: missing %s; usage: %s", cmd.CommandPath(), strings.Join(names[len(args):], " "), cmd.UseLine())
		}
		if len(args) > len(names) {
			return usagef("%s: unexpected argument %q; usage: %s", cmd.CommandPath(), args[len(names)], cmd.UseLine())
		}
		return nil
	}
}

// optionalArg allows one positional argument.
func optionalArg(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > 1 {
			return usagef("%s: unexpected argument %q after %s", cmd.CommandPath(), args[1], name)
		}
		return nil
	}
}

func newVersion(p *process) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: exactArgs(),
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintf(p.stdout, "skein %s %s %s/%s\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}

// version is the module's version, or the revision it was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	revision, dirty := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value[:min(len(s.Value), 12)]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "+dirty"
		}
	}
	if revision == "" {
		return "devel"
	}
	return revision + dirty
}
