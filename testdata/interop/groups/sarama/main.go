// Command sarama is a member of a consumer group on sarama: it prints the value of every record it reads.
//
//	sarama BOOTSTRAP TOPIC GROUP
//
// It commits and leaves on SIGTERM.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/IBM/sarama"
)

type handler struct{}

func (handler) Setup(sarama.ConsumerGroupSession) error   { return nil }
func (handler) Cleanup(sarama.ConsumerGroupSession) error { return nil }

func (handler) ConsumeClaim(s sarama.ConsumerGroupSession, c sarama.ConsumerGroupClaim) error {
	for {
		select {
		case m, ok := <-c.Messages():
			if !ok {
				return nil
			}
			fmt.Println(string(m.Value))
			s.MarkMessage(m, "")
		case <-s.Context().Done():
			return nil
		}
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	cfg := sarama.NewConfig() // the protocol version it comes with
	cfg.Consumer.Offsets.Initial = sarama.OffsetOldest
	g, err := sarama.NewConsumerGroup(strings.Split(os.Args[1], ","), os.Args[3], cfg)
	if err != nil {
		log.Fatal(err)
	}
	for ctx.Err() == nil {
		if err := g.Consume(ctx, []string{os.Args[2]}, handler{}); err != nil && !errors.Is(err, sarama.ErrClosedConsumerGroup) {
			log.Print(err)
		}
	}
	if err := g.Close(); err != nil {
		log.Fatal(err)
	}
}
