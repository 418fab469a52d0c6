package agent

import (
	"context"
	"fmt"

	"github.com/skeinio/skein/metadata"
)

// catalogueWith gives the cached catalogue if it has what is asked for, else a fresh one, which may not have it either.
func (s *Server) catalogueWith(ctx context.Context, has func(*metadata.Catalogue) bool) (*metadata.Catalogue, error) {
	c, err := s.store.Catalogue(ctx)
	if err == nil && !has(c) {
		c, err = s.store.RefreshCatalogue(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("read the catalogue: %w", err)
	}
	s.saw(c)
	return c, nil
}

// saw keeps the newest catalogue.
func (s *Server) saw(c *metadata.Catalogue) {
	if s.catalogue.Load() != c {
		s.catalogue.Store(c)
		s.configs.trim(len(c.Topics()))
	}
}

// maxTopicNameBytes is Kafka's.
const maxTopicNameBytes = 249

// validTopicName says whether Kafka would take the name.
func validTopicName(name string) bool {
	if name == "" || name == "." || name == ".." || len(name) > maxTopicNameBytes {
		return false
	}
	for i := range len(name) {
		if b := name[i]; !isAlphanumeric(b) && b != '.' && b != '_' && b != '-' {
			return false
		}
	}
	return true
}

func isAlphanumeric(b byte) bool {
	return 'a' <= b && b <= 'z' || 'A' <= b && b <= 'Z' || '0' <= b && b <= '9'
}
