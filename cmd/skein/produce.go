package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kgo"
)

// maxLineBytes bounds one line of `skein produce`.
const maxLineBytes = 128 << 20

// produceFlags are the flags of `skein produce`.
type produceFlags struct {
	separator   string
	headers     []string
	file        string
	partition   int32
	acks        string
	compression string
	timeout     time.Duration
	batchBytes  int32
}

func newProduce(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use: "produce TOPIC", Short: "Write the lines of stdin, or of a file, as records", Args: exactArgs("TOPIC"),
	}
	var f produceFlags
	cmd.Flags().StringVarP(&f.separator, "key-separator", "k", "", "what is before the first `separator` of a line is the record's key")
	cmd.Flags().StringArrayVarP(&f.headers, "header", "H", nil, "header `key=value` of every record, may be repeated")
	cmd.Flags().StringVar(&f.file, "file", "", "read this file instead of stdin")
	cmd.Flags().Int32Var(&f.partition, "partition", -1, "write to this partition; -1: by key, or any")
	cmd.Flags().StringVar(&f.acks, "acks", "all", "all, 1 or 0")
	cmd.Flags().StringVar(&f.compression, "compression", "none", "none, gzip, snappy, lz4 or zstd")
	cmd.Flags().DurationVar(&f.timeout, "timeout", time.Minute, "how long a record may take")
	cmd.Flags().Int32Var(&f.batchBytes, "batch-bytes", defaultBatchBytes, "largest batch, thus largest record; not above the topic's max.message.bytes")
	addBootstrap(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx, stop := p.interruptible(cmd.Context())
		defer stop()
		return produceLines(ctx, p, cmd, args[0], &f)
	}
	return cmd
}

// options are the client's.
func (f *produceFlags) options(topic string) ([]kgo.Opt, error) {
	codec, err := codecOf(f.compression)
	if err != nil {
		return nil, err
	}
	opts := []kgo.Opt{
		kgo.DefaultProduceTopic(topic), kgo.ProducerBatchCompression(codec),
		kgo.RecordDeliveryTimeout(f.timeout), kgo.ProducerBatchMaxBytes(f.batchBytes), kgo.BrokerMaxWriteBytes(maxProduceRequest),
		// The timeout is also for records that were sent and not answered. Nothing here writes a failed record again.
		kgo.AllowIdempotentProduceCancellation(),
	}
	if f.batchBytes < 1 || f.batchBytes > maxProduceBatch {
		return nil, usagef("--batch-bytes %d: want 1 to %d", f.batchBytes, maxProduceBatch)
	}
	switch f.acks {
	case "all", "-1":
	case "1":
		opts = append(opts, kgo.RequiredAcks(kgo.LeaderAck()), kgo.DisableIdempotentWrite())
	case "0":
		opts = append(opts, kgo.RequiredAcks(kgo.NoAck()), kgo.DisableIdempotentWrite())
	default:
		return nil, usagef("--acks %q: want all, 1 or 0", f.acks)
	}
	if f.partition >= 0 {
		opts = append(opts, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	}
	return opts, nil
}

// Bounds of what clients send, in bytes.
const (
	// defaultBatchBytes is below the default of max.message.bytes.
	defaultBatchBytes = 1_000_000
	maxProduceBatch   = 64 << 20
	maxProduceRequest = 100 << 20
)

func codecOf(name string) (kgo.CompressionCodec, error) {
	switch name {
	case "none":
		return kgo.NoCompression(), nil
	case "gzip":
		return kgo.GzipCompression(), nil
	case "snappy":
		return kgo.SnappyCompression(), nil
	case "lz4":
		return kgo.Lz4Compression(), nil
	case "zstd":
		return kgo.ZstdCompression(), nil
	}
	return kgo.NoCompression(), usagef("--compression %q: want none, gzip, snappy, lz4 or zstd", name)
}

func produceLines(ctx context.Context, p *process, cmd *cobra.Command, topic string, f *produceFlags) error {
	opts, err := f.options(topic)
	if err != nil {
		return err
	}
	pairs, err := keyValues("-H", f.headers)
	if err != nil {
		return err
	}
	var headers []kgo.RecordHeader
	for _, kv := range pairs {
		headers = append(headers, kgo.RecordHeader{Key: kv[0], Value: []byte(kv[1])})
	}
	in := p.stdin
	if f.file != "" {
		file, err := os.Open(f.file)
		if err != nil {
			return usagef("--file: %w", err)
		}
		defer file.Close()
		in = file
	}
	client, err := connect(ctx, cmd, append(opts, kgo.AllowAutoTopicCreation())...)
	if err != nil {
		return err
	}
	defer client.Close()

	failed := newFirstError()
	err = eachLine(ctx, in, failed.c, func(line []byte) {
		record := f.record(line, headers)
		client.Produce(ctx, record, func(_ *kgo.Record, err error) { failed.note(err) })
	})
	// What was read is sent even when reading failed or was interrupted.
	if flushErr := client.Flush(context.WithoutCancel(ctx)); flushErr != nil {
		failed.note(flushErr)
	}
	if n, first := failed.get(); first != nil {
		return fmt.Errorf("produce to %q: %d records failed, the first with: %w", topic, n, first)
	}
	return err
}

// record makes a record of a line, which is copied.
func (f *produceFlags) record(line []byte, headers []kgo.RecordHeader) *kgo.Record {
	r := &kgo.Record{Headers: headers, Partition: max(f.partition, 0)}
	if f.separator != "" {
		if key, value, ok := strings.Cut(string(line), f.separator); ok {
			r.Key, r.Value = []byte(key), []byte(value)
			return r
		}
	}
	r.Value = append([]byte{}, line...)
	return r
}

// eachLine calls fn for each line without its \n; a last line without one counts. It returns early, without an error, when
// stop is closed, and with the context's cause when ctx ends: the reader is then left to the process's end, as a read of
// a terminal or a pipe cannot be cancelled.
func eachLine(ctx context.Context, in io.Reader, stop <-chan struct{}, fn func(line []byte)) error {
	ended := make(chan error, 1)
	go func() {
		lines := bufio.NewScanner(in)
		lines.Buffer(make([]byte, 0, 64<<10), maxLineBytes)
		lines.Split(splitLines)
		for lines.Scan() && ctx.Err() == nil && !isClosed(stop) {
			fn(lines.Bytes())
		}
		ended <- lines.Err()
	}()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-stop:
		return nil
	case err := <-ended:
		if errors.Is(err, bufio.ErrTooLong) {
			return fmt.Errorf("a line is longer than %s", formatSize(maxLineBytes))
		}
		if err != nil {
			return fmt.Errorf("read lines: %w", err)
		}
		return nil
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// splitLines is bufio.ScanLines but for leaving a carriage return where it is: records are bytes.
func splitLines(data []byte, atEOF bool) (int, []byte, error) {
	if i := bytes.IndexByte(data, '\n'); i >= 0 {
		return i + 1, data[:i], nil
	}
	if atEOF && len(data) > 0 {
		return len(data), data, nil
	}
	return 0, nil, nil
}

// firstError keeps the first error of many callbacks and counts them.
type firstError struct {
	mu    sync.Mutex
	first error
	count int
	c     chan struct{} // closed at the first
}

func newFirstError() *firstError { return &firstError{c: make(chan struct{})} }

func (f *firstError) note(err error) {
	if err == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.count++; f.first == nil {
		f.first = err
		close(f.c)
	}
}

// get gives how many errors there were, and the first.
func (f *firstError) get() (count int, first error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count, f.first
}
