package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Bounds of the client commands.
const (
	// reachTimeout is how long a command waits for the first agent that answers.
	reachTimeout = 10 * time.Second
	// adminTimeout bounds one admin command.
	adminTimeout = 30 * time.Second
	// readTimeout is how long a command that reads up to an end waits for the next record.
	readTimeout = 30 * time.Second
)

// output is the format of lists and results.
type output string

const (
	outputTable output = "table"
	outputJSON  output = "json"
)

func (o *output) String() string { return string(*o) }
func (o *output) Type() string   { return "table|json" }
func (o *output) Set(text string) error {
	switch x := output(text); x {
	case outputTable, outputJSON:
		*o = x
		return nil
	}
	return fmt.Errorf("%q is not one of table, json", text)
}

// addOutput makes the -o flag.
func addOutput(cmd *cobra.Command) *output {
	o := outputTable
	cmd.Flags().VarP(&o, "output", "o", "output format")
	return &o
}

// addBootstrap makes the --bootstrap flag.
func addBootstrap(cmd *cobra.Command) { addFlags(cmd, inClient) }

// bootstrap reads --bootstrap.
func bootstrap(cmd *cobra.Command) ([]string, error) {
	s, err := readSettings(cmd.Flags(), inClient)
	if err != nil {
		return nil, err
	}
	seeds := s.names("bootstrap")
	if len(seeds) == 0 {
		return nil, usagef("--bootstrap names no agent")
	}
	for _, seed := range seeds {
		if _, err := parseAddress(seed); err != nil {
			return nil, usagef("--bootstrap: %w", err)
		}
	}
	return seeds, nil
}

// clientID is what the clients call themselves.
const clientID = "skein"

// connect makes a client and waits until an agent answers, also at the address that it tells clients to use.
func connect(ctx context.Context, cmd *cobra.Command, opts ...kgo.Opt) (*kgo.Client, error) {
	seeds, err := bootstrap(cmd)
	if err != nil {
		return nil, err
	}
	all := append([]kgo.Opt{
		kgo.SeedBrokers(seeds...), kgo.ClientID(clientID), kgo.SoftwareNameAndVersion("skein", softwareVersion()),
		kgo.DialTimeout(reachTimeout / 2),
	}, opts...)
	client, err := kgo.NewClient(all...)
	if err != nil {
		return nil, usagef("client: %w", err)
	}
	reach, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	if err := client.Ping(reach); err != nil {
		client.Close()
		return nil, fmt.Errorf("no agent answers at %s: %w", strings.Join(seeds, ","), stopCause(ctx, err))
	}
	if err := reachAdvertised(reach, client); err != nil {
		client.Close()
		return nil, fmt.Errorf("an agent answers at %s, but none where the agents tell clients to connect (their --advertise): %w",
			strings.Join(seeds, ","), stopCause(ctx, err))
	}
	return client, nil
}

// reachAdvertised waits until one of the agents that are known by now answers at the address in the metadata. All else goes
// there, and the client tries to reach it again and again for as long as it may.
func reachAdvertised(ctx context.Context, client *kgo.Client) error {
	brokers := client.DiscoveredBrokers()
	answers := make(chan error, len(brokers))
	ctx, cancel := context.WithCancel(ctx)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()
	for _, b := range brokers {
		asking.Go(func() {
			_, err := b.Request(ctx, kmsg.NewPtrApiVersionsRequest())
			answers <- err
		})
	}
	err := errors.New("they tell of no address")
	for range brokers {
		if err = <-answers; err == nil {
			return nil
		}
	}
	return err
}

// softwareVersion is the version as KIP-511 allows it: letters, digits, dots and dashes, starting and ending with a letter
// or a digit.
func softwareVersion() string {
	v := strings.Map(func(r rune) rune {
		if r == '.' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return '-'
	}, version())
	return strings.Trim(v, ".-")
}

// connectAdmin is connect for the admin commands, which do not wait long.
func connectAdmin(ctx context.Context, cmd *cobra.Command) (*kadm.Client, context.Context, func(), error) {
	client, err := connect(ctx, cmd, kgo.RetryTimeout(adminTimeout))
	if err != nil {
		return nil, nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	return kadm.NewClient(client), ctx, func() { cancel(); client.Close() }, nil
}

// stopCause is the reason why ctx ended, where it did and err says no more than that.
func stopCause(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return context.Cause(ctx)
	}
	return err
}

// pollForEver waits for records until there are some.
func pollForEver(ctx context.Context, client *kgo.Client) (kgo.Fetches, error) {
	fetches := client.PollFetches(ctx)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err := fetches.Err(); err != nil {
		return nil, fmt.Errorf("consume: %w", err)
	}
	return fetches, nil
}

// writeJSON writes one indented JSON value.
func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// writeTable writes rows in aligned columns; the first row is the heading.
func writeTable(w io.Writer, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, r := range rows {
		if _, err := fmt.Fprintln(t, strings.Join(r, "\t")); err != nil {
			return err
		}
	}
	return t.Flush()
}

// keyValues reads key=value arguments in order.
func keyValues(flag string, args []string) ([][2]string, error) {
	out := make([][2]string, 0, len(args))
	for _, a := range args {
		k, v, ok := strings.Cut(a, "=")
		if !ok || k == "" {
			return nil, usagef("%s %q: want key=value", flag, a)
		}
		out = append(out, [2]string{k, v})
	}
	return out, nil
}
