package objstore

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// Bounds of keys. S3 allows 1024 bytes in all; file systems (and MinIO, which stores keys as paths)
// 255 per path element.
const (
	MaxKeyBytes        = 1024
	MaxKeyElementBytes = 255
)

// ValidateKey refuses keys that not every store can hold under exactly that name: empty, too long, not
// UTF-8, with control characters or backslashes, or with elements that a path would resolve ("", "."
// and ".."). The error wraps ErrInvalidKey.
func ValidateKey(key string) error {
	switch {
	case key == "":
		return fmt.Errorf("%w: empty", ErrInvalidKey)
	case len(key) > MaxKeyBytes:
		return fmt.Errorf("%w: %d bytes, more than %d", ErrInvalidKey, len(key), MaxKeyBytes)
	case !utf8.ValidString(key):
		return fmt.Errorf("%w: not UTF-8", ErrInvalidKey)
	}
	for _, r := range key {
		if r < 0x20 || r == 0x7f || r == '\\' {
			return fmt.Errorf("%w: has character %U", ErrInvalidKey, r)
		}
	}
	for element := range strings.SplitSeq(key, "/") {
		switch {
		case element == "" || element == "." || element == "..":
			return fmt.Errorf("%w: has path element %q", ErrInvalidKey, element)
		case len(element) > MaxKeyElementBytes:
			return fmt.Errorf("%w: path element of %d bytes, more than %d", ErrInvalidKey, len(element), MaxKeyElementBytes)
		}
	}
	return nil
}
