package agent

import (
	"context"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sync/errgroup"
)

// listenMore opens the further listeners.
func (s *Server) listenMore(ctx context.Context) (opened []net.Listener, err error) {
	var lc net.ListenConfig
	for _, l := range s.cfg.Listeners {
		x, err := lc.Listen(ctx, "tcp", l.Listen)
		if err != nil {
			for _, o := range opened {
				err = errors.Join(err, o.Close())
			}
			return nil, fmt.Errorf("listen for Kafka clients on %s (%s): %w", l.Listen, l.Name, err)
		}
		opened = append(opened, x)
	}
	return opened, nil
}

// closeListeners closes all listeners.
func (s *Server) closeListeners() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	if s.listener != nil {
		errs = append(errs, s.listener.Close())
	}
	for _, l := range s.others {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// acceptAll takes connections on all listeners until they are closed.
func (s *Server) acceptAll(ctx context.Context) error {
	var g errgroup.Group
	g.Go(func() error { return s.accept(ctx, s.listener, "") })
	for i, l := range s.others {
		g.Go(func() error { return s.accept(ctx, l, s.cfg.Listeners[i].Name) })
	}
	return g.Wait()
}
