package compactor

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"

	"github.com/skeinio/skein/metadata"
)

// spoolShards is in how many parts fsck looks at objects: what it has in memory of them is one part.
const spoolShards = 128

// spooled is something about an object: that the bucket has it, its row, or that a block names it.
type spooled struct {
	Key    metadata.ObjectKey      `json:"k"`
	Stored *storedObject           `json:"s,omitempty"`
	Row    *metadata.ObjectListing `json:"r,omitempty"`
	Block  metadata.BlockID        `json:"b,omitempty"`
	Try    int                     `json:"t,omitempty"`
	Named  int                     `json:"n,omitempty"`
}

// storedObject is what the bucket's listing says of an object.
type storedObject struct {
	Size     int64           `json:"z"`
	Modified metadata.Millis `json:"m"` // by the bucket's clock
}

// spool keeps what fsck learns about objects in files, by a hash of the key.
type spool struct {
	dir    string
	files  [spoolShards]*os.File
	buffer [spoolShards]*bufio.Writer
}

func newSpool() (*spool, error) {
	dir, err := os.MkdirTemp("", "skein-fsck-")
	if err != nil {
		return nil, fmt.Errorf("fsck: %w", err)
	}
	return &spool{dir: dir}, nil
}

func (s *spool) close() error {
	var errs []error
	for _, f := range s.files {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}

func (s *spool) add(x *spooled) error {
	h := fnv.New32a()
	_, _ = io.WriteString(h, string(x.Key)) // a hash takes anything
	i := h.Sum32() % spoolShards
	if s.files[i] == nil {
		f, err := os.CreateTemp(s.dir, "objects-")
		if err != nil {
			return fmt.Errorf("fsck: %w", err)
		}
		s.files[i], s.buffer[i] = f, bufio.NewWriter(f)
	}
	line, err := json.Marshal(x)
	if err != nil {
		return fmt.Errorf("fsck: %w", err)
	}
	if _, err := s.buffer[i].Write(append(line, '\n')); err != nil {
		return fmt.Errorf("fsck: %w", err)
	}
	return nil
}

// each calls fn for all of a shard.
func (s *spool) each(shard int, fn func(*spooled)) error {
	f := s.files[shard]
	if f == nil {
		return nil
	}
	if err := s.buffer[shard].Flush(); err != nil {
		return fmt.Errorf("fsck: %w", err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("fsck: %w", err)
	}
	for d := json.NewDecoder(bufio.NewReader(f)); ; {
		x := &spooled{}
		switch err := d.Decode(x); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("fsck: %w", err)
		}
		fn(x)
	}
}
