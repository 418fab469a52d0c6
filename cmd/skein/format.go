package main

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"
)

// defaultFormat prints a record's value and a line break.
const defaultFormat = `%s\n`

// recordFormat writes records by a format like kcat's.
type recordFormat []func(dst []byte, r *kgo.Record) []byte

// parseFormat reads a format: %s value, %S its length (-1: null), %R its length as four bytes, big-endian, %k key, %K its
// length, %T timestamp in milliseconds, %h headers, %t topic, %p partition, %o offset, %% a percent sign; \n \r \t \0
// \xHH \\.
func parseFormat(text string) (recordFormat, error) {
	var f recordFormat
	for len(text) > 0 {
		switch text[0] {
		case '%':
			if len(text) < 2 {
				return nil, fmt.Errorf("format ends in a single %%")
			}
			field, ok := recordField(text[1])
			if !ok {
				return nil, fmt.Errorf("format has %%%c; known are %%s %%S %%R %%k %%K %%T %%h %%t %%p %%o %%%%", text[1])
			}
			f, text = append(f, field), text[2:]
		case '\\':
			b, n, err := escape(text)
			if err != nil {
				return nil, err
			}
			f, text = append(f, literal(string(b))), text[n:]
		default:
			n := strings.IndexAny(text, `%\`)
			if n < 0 {
				n = len(text)
			}
			f, text = append(f, literal(text[:n])), text[n:]
		}
	}
	return f, nil
}

func literal(s string) func([]byte, *kgo.Record) []byte {
	return func(dst []byte, _ *kgo.Record) []byte { return append(dst, s...) }
}

// escape reads the backslash sequence that text starts with.
func escape(text string) (b byte, length int, err error) {
	if len(text) < 2 {
		return 0, 0, fmt.Errorf(`format ends in a single \`)
	}
	switch text[1] {
	case 'n':
		return '\n', 2, nil
	case 'r':
		return '\r', 2, nil
	case 't':
		return '\t', 2, nil
	case '0':
		return 0, 2, nil
	case '\\':
		return '\\', 2, nil
	case 'x':
		if len(text) >= 4 {
			if v, err := strconv.ParseUint(text[2:4], 16, 8); err == nil {
				return byte(v), 4, nil
			}
		}
		return 0, 0, fmt.Errorf(`format has \x without two hexadecimal digits`)
	}
	return 0, 0, fmt.Errorf(`format has \%c; known are \n \r \t \0 \xHH \\`, text[1])
}

func recordField(c byte) (func([]byte, *kgo.Record) []byte, bool) {
	switch c {
	case 's':
		return func(dst []byte, r *kgo.Record) []byte { return append(dst, r.Value...) }, true
	case 'S':
		return func(dst []byte, r *kgo.Record) []byte { return appendLength(dst, r.Value) }, true
	case 'R':
		return func(dst []byte, r *kgo.Record) []byte {
			return binary.BigEndian.AppendUint32(dst, uint32(length(r.Value)))
		}, true
	case 'k':
		return func(dst []byte, r *kgo.Record) []byte { return append(dst, r.Key...) }, true
	case 'K':
		return func(dst []byte, r *kgo.Record) []byte { return appendLength(dst, r.Key) }, true
	case 'T':
		return func(dst []byte, r *kgo.Record) []byte { return strconv.AppendInt(dst, r.Timestamp.UnixMilli(), 10) }, true
	case 'h':
		return appendHeaders, true
	case 't':
		return func(dst []byte, r *kgo.Record) []byte { return append(dst, r.Topic...) }, true
	case 'p':
		return func(dst []byte, r *kgo.Record) []byte { return strconv.AppendInt(dst, int64(r.Partition), 10) }, true
	case 'o':
		return func(dst []byte, r *kgo.Record) []byte { return strconv.AppendInt(dst, r.Offset, 10) }, true
	case '%':
		return literal("%"), true
	}
	return nil, false
}

// length is that of a key or value; null has -1.
func length(b []byte) int {
	if b == nil {
		return -1
	}
	return len(b)
}

func appendLength(dst, b []byte) []byte { return strconv.AppendInt(dst, int64(length(b)), 10) }

func appendHeaders(dst []byte, r *kgo.Record) []byte {
	for i, h := range r.Headers {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(append(append(dst, h.Key...), '='), h.Value...)
	}
	return dst
}

// append writes one record.
func (f recordFormat) append(dst []byte, r *kgo.Record) []byte {
	for _, field := range f {
		dst = field(dst, r)
	}
	return dst
}
