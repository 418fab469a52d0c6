package objstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// What can be wrong, told apart whatever the vendor. Test with errors.Is.
var (
	// ErrNotFound: there is no object under that key.
	ErrNotFound = errors.New("no such object")
	// ErrNoBucket: the bucket (or the folder) itself is missing.
	ErrNoBucket = errors.New("no such bucket")
	// ErrAccess: the credential is wrong, expired, or not allowed to do this.
	ErrAccess = errors.New("access denied")
	// ErrExists: a conditional Put found the key taken.
	ErrExists = errors.New("object exists already")
	// ErrFull: the store has no room (disk full, quota).
	ErrFull = errors.New("bucket is full")
	// ErrUnavailable: network, timeout, throttling, 5xx. Trying again may help.
	ErrUnavailable = errors.New("bucket is unavailable")
	// ErrRange: the range lies outside the object, or is no range.
	ErrRange = errors.New("range not satisfiable")
	// ErrShort: the object ended before the range did.
	ErrShort = errors.New("object is shorter than the range")
	// ErrInvalidKey: the key breaks the rules of ValidateKey or the vendor's.
	ErrInvalidKey = errors.New("invalid key")
	// ErrChecksum: the store got other bytes than were sent. Trying again may help.
	ErrChecksum = errors.New("checksum mismatch")
	// ErrRefused: the store refused the request for a reason that has no sentinel of its own.
	ErrRefused = errors.New("bucket refused the request")
)

// Retriable tells whether doing the same again later can succeed without anybody mending anything:
// ErrUnavailable and ErrChecksum. ErrFull is not (somebody has to make room), nor is a context's end.
func Retriable(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	return errors.Is(err, ErrUnavailable) || errors.Is(err, ErrChecksum)
}

// Op names a Bucket's method in errors and metrics.
type Op string

// The operations of a Bucket.
const (
	OpPut    Op = "put"
	OpGet    Op = "get"
	OpHead   Op = "head"
	OpList   Op = "list"
	OpDelete Op = "delete"
	OpCheck  Op = "check"
	OpCreate Op = "create"
)

// Error is what every method of a Bucket fails with: what was tried, on what, the sentinel, and the
// vendor's own words.
type Error struct {
	Op  Op
	Key string // or the prefix of a List; empty where there is none
	// Offset and Length are the range of a Get; Length < 0 means to the end. Ranged says whether they count.
	Offset, Length int64
	Ranged         bool
	Kind           error // one of the sentinels; nil when a context ended
	Err            error // the cause; may be nil
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("bucket ")
	b.WriteString(string(e.Op))
	if e.Key != "" {
		fmt.Fprintf(&b, " %q", e.Key)
	}
	if e.Ranged {
		if e.Length < 0 {
			fmt.Fprintf(&b, " [%d:]", e.Offset)
		} else {
			fmt.Fprintf(&b, " [%d:+%d]", e.Offset, e.Length)
		}
	}
	if e.Kind != nil {
		fmt.Fprintf(&b, ": %v", e.Kind)
	}
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	return b.String()
}

// Unwrap gives errors.Is and errors.As both the sentinel and the cause.
func (e *Error) Unwrap() []error {
	var all []error
	if e.Kind != nil {
		all = append(all, e.Kind)
	}
	if e.Err != nil {
		all = append(all, e.Err)
	}
	return all
}

// NewError makes the error of an operation on a key for an implementation of Bucket. A context's end
// wins over kind: vendors report a cancelled request as any kind of network failure.
func NewError(ctx context.Context, op Op, key string, kind, err error) error {
	if cause := ctx.Err(); cause != nil {
		kind = nil
		if !errors.Is(err, cause) {
			err = cause
		}
	}
	return &Error{Op: op, Key: key, Kind: kind, Err: err}
}

// NewRangeError is NewError for a Get.
func NewRangeError(ctx context.Context, key string, offset, length int64, kind, err error) error {
	e := NewError(ctx, OpGet, key, kind, err).(*Error)
	e.Offset, e.Length, e.Ranged = offset, length, true
	return e
}

func rangeError(op Op, key string, offset, length int64, kind, err error) error {
	return &Error{Op: op, Key: key, Offset: offset, Length: length, Ranged: true, Kind: kind, Err: err}
}

// KeyError is the reason why one key could not be deleted.
type KeyError struct {
	Key string
	Err error // wraps a sentinel
}

// DeleteError lists the keys that a Delete could not remove; all others are gone.
type DeleteError struct {
	Failed []KeyError // not empty
}

func (e *DeleteError) Error() string {
	return fmt.Sprintf("%d keys not deleted, first %q: %v", len(e.Failed), e.Failed[0].Key, e.Failed[0].Err)
}

// Unwrap gives errors.Is every key's reason.
func (e *DeleteError) Unwrap() []error {
	all := make([]error, len(e.Failed))
	for i := range e.Failed {
		all[i] = e.Failed[i].Err
	}
	return all
}

// DeleteFailure makes Delete's error from the keys that failed; nil when none did. A context's end is
// then among the reasons.
func DeleteFailure(failed []KeyError) error {
	if len(failed) == 0 {
		return nil
	}
	return &Error{Op: OpDelete, Err: &DeleteError{Failed: failed}}
}

// CheckGet refuses what Get's contract refuses before a request is made.
func CheckGet(key string, offset, length int64) error {
	if err := checkKey(OpGet, key); err != nil {
		return err
	}
	if offset < 0 || length == 0 {
		return rangeError(OpGet, key, offset, length, ErrRange, nil)
	}
	return nil
}

// CheckKey is ValidateKey with the operation in the error.
func CheckKey(op Op, key string) error { return checkKey(op, key) }

func checkKey(op Op, key string) error {
	if err := ValidateKey(key); err != nil {
		return &Error{Op: op, Key: key, Err: err}
	}
	return nil
}
