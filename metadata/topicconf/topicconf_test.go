package topicconf

import (
	"errors"
	"testing"
)

func TestDefaultsAreValid(t *testing.T) {
	all := All()
	if len(all) != len(Defs()) {
		t.Fatalf("%d names for %d definitions", len(all), len(Defs()))
	}
	for name, d := range all {
		if err := all.Validate(map[string]string{name: d.Default}); err != nil {
			t.Errorf("default of %s: %v", name, err)
		}
		if d.Doc == "" {
			t.Errorf("%s has no documentation", name)
		}
	}
}

func TestValidate(t *testing.T) {
	all := All()
	for _, c := range []struct {
		name, value string
		want        error
	}{
		{"retention.ms", "-1", nil},
		{"retention.ms", "-2", ErrInvalid},
		{"retention.ms", "1h", ErrInvalid},
		{"retention.ms", "", ErrInvalid},
		{"max.message.bytes", "2147483647", nil},
		{"max.message.bytes", "2147483648", ErrInvalid},
		{"cleanup.policy", "compact", nil},
		{"cleanup.policy", "compact, delete", nil},
		{"cleanup.policy", "compact,compact", ErrInvalid},
		{"cleanup.policy", "", ErrInvalid},
		{"cleanup.policy", "keep", ErrInvalid},
		{"compression.type", "brotli", ErrInvalid},
		{"min.cleanable.dirty.ratio", "NaN", ErrInvalid},
		{"min.cleanable.dirty.ratio", "1.01", ErrInvalid},
		{"preallocate", "TRUE", nil},
		{"preallocate", "yes", ErrInvalid},
		{"retention.hours", "1", ErrUnknown},
	} {
		if err := all.Validate(map[string]string{c.name: c.value}); !errors.Is(err, c.want) {
			t.Errorf("%s=%s: got %v, want %v", c.name, c.value, err, c.want)
		}
	}
	lags := map[string]string{"min.compaction.lag.ms": "10", "max.compaction.lag.ms": "9"}
	if err := all.Validate(lags); !errors.Is(err, ErrInvalid) {
		t.Errorf("lags the wrong way around: got %v", err)
	}
}
