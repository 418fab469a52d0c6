// Command franz is a member of a consumer group on franz-go: it prints the value of every record it reads.
//
//	franz BOOTSTRAP TOPIC GROUP classic|consumer
//
// It commits and leaves on SIGTERM.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/twmb/franz-go/pkg/kgo"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	opts := []kgo.Opt{
		kgo.SeedBrokers(strings.Split(os.Args[1], ",")...), kgo.ConsumeTopics(os.Args[2]), kgo.ConsumerGroup(os.Args[3]),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
	}
	if os.Args[4] == "consumer" {
		opts = append(opts, kgo.ServerSideBalancer(), kgo.Balancers(kgo.StickyBalancer()))
	}
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		log.Fatal(err)
	}
	for ctx.Err() == nil {
		cl.PollFetches(ctx).EachRecord(func(r *kgo.Record) { fmt.Println(string(r.Value)) })
	}
	last := context.Background()
	if err := cl.CommitUncommittedOffsets(last); err != nil {
		log.Print(err)
	}
	if err := cl.LeaveGroupContext(last); err != nil {
		log.Print(err)
	}
	cl.Close()
}
