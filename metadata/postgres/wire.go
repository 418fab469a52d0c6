package postgres

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgtype"
)

// The hot statements' parameters are written in Postgres' binary format by hand, one array for each column: pgx's
// reflection cost more than the statement for a commit of thousands of partitions.

// params collects a statement's parameters in one buffer, which is used again for the next statement.
type params struct {
	buf    []byte
	ends   []int
	values [][]byte
}

func (p *params) reset() *params {
	p.buf, p.ends = p.buf[:0], p.ends[:0]
	return p
}

// list gives the parameters; valid until the next reset.
func (p *params) list() [][]byte {
	p.values = p.values[:0]
	start := 0
	for _, end := range p.ends {
		p.values = append(p.values, p.buf[start:end:end])
		start = end
	}
	return p.values
}

// array starts an array parameter of n elements; the caller appends the elements and calls end.
func (p *params) array(oid uint32, n int, nulls bool) {
	b := p.buf
	if n == 0 {
		b = binary.BigEndian.AppendUint32(b, 0)
		b = binary.BigEndian.AppendUint32(b, 0)
		p.buf = binary.BigEndian.AppendUint32(b, oid)
		return
	}
	b = binary.BigEndian.AppendUint32(b, 1) // dimensions
	var hasNull uint32
	if nulls {
		hasNull = 1
	}
	b = binary.BigEndian.AppendUint32(b, hasNull)
	b = binary.BigEndian.AppendUint32(b, oid)
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	p.buf = binary.BigEndian.AppendUint32(b, 1) // lower bound
}

func (p *params) end() { p.ends = append(p.ends, len(p.buf)) }

func (p *params) int8(v int64) {
	p.buf = binary.BigEndian.AppendUint32(p.buf, 8)
	p.buf = binary.BigEndian.AppendUint64(p.buf, uint64(v))
}

// scalar adds a whole int8 parameter.
func (p *params) scalar(v int64) {
	p.buf = binary.BigEndian.AppendUint64(p.buf, uint64(v))
	p.end()
}

// string adds a whole text parameter.
func (p *params) string(v string) {
	p.buf = append(p.buf, v...)
	p.end()
}

func (p *params) int4(v int32) {
	p.buf = binary.BigEndian.AppendUint32(p.buf, 4)
	p.buf = binary.BigEndian.AppendUint32(p.buf, uint32(v))
}

func (p *params) bytes(v []byte) {
	p.buf = binary.BigEndian.AppendUint32(p.buf, uint32(len(v)))
	p.buf = append(p.buf, v...)
}

func (p *params) text(v string) {
	p.buf = binary.BigEndian.AppendUint32(p.buf, uint32(len(v)))
	p.buf = append(p.buf, v...)
}

func (p *params) null() { p.buf = binary.BigEndian.AppendUint32(p.buf, 0xFFFFFFFF) }

// open starts an element whose length is not known yet; close sets it.
func (p *params) open() int {
	p.buf = append(p.buf, 0, 0, 0, 0)
	return len(p.buf)
}

func (p *params) close(at int) {
	binary.BigEndian.PutUint32(p.buf[at-4:], uint32(len(p.buf)-at))
}

// int8Array, int4Array, textArray and uuidArray add a whole array parameter.
func int8Array[T any](p *params, list []T, field func(*T) int64) {
	p.array(pgtype.Int8OID, len(list), false)
	for i := range list {
		p.int8(field(&list[i]))
	}
	p.end()
}

func int4Array[T any](p *params, list []T, field func(*T) int32) {
	p.array(pgtype.Int4OID, len(list), false)
	for i := range list {
		p.int4(field(&list[i]))
	}
	p.end()
}

func textArray[T any](p *params, list []T, field func(*T) string) {
	p.array(pgtype.TextOID, len(list), false)
	for i := range list {
		p.text(field(&list[i]))
	}
	p.end()
}

func uuidArray[T any](p *params, list []T, field func(*T) *[16]byte) {
	p.array(pgtype.UUIDOID, len(list), false)
	for i := range list {
		p.bytes(field(&list[i])[:])
	}
	p.end()
}

func byteaArray[T any](p *params, list []T, field func(*T) []byte) {
	p.array(pgtype.ByteaOID, len(list), false)
	for i := range list {
		p.bytes(field(&list[i]))
	}
	p.end()
}

// binaryFormat says that all parameters, or all results, are binary.
var binaryFormat = []int16{1}

// errWire: an answer of the database does not have the shape that the statement gives it.
var errWire = errors.New("unexpected answer of the database")

// column reads the columns of a result row in binary format; after the first error it reads zeros.
type column struct {
	values [][]byte
	next   int
	err    error
}

func (c *column) raw() []byte {
	if c.next >= len(c.values) {
		c.fail(0)
		return nil
	}
	v := c.values[c.next]
	c.next++
	return v
}

func (c *column) fail(size int) {
	if c.err == nil {
		c.err = fmt.Errorf("%w: column %d has %d bytes", errWire, c.next, size)
	}
}

func (c *column) null() bool { return c.next < len(c.values) && c.values[c.next] == nil }

func (c *column) int8() int64 {
	v := c.raw()
	if len(v) != 8 {
		c.fail(len(v))
		return 0
	}
	return int64(binary.BigEndian.Uint64(v))
}

func (c *column) int4() int32 {
	v := c.raw()
	if len(v) != 4 {
		c.fail(len(v))
		return 0
	}
	return int32(binary.BigEndian.Uint32(v))
}

func (c *column) int2() int16 {
	v := c.raw()
	if len(v) != 2 {
		c.fail(len(v))
		return 0
	}
	return int16(binary.BigEndian.Uint16(v))
}

func (c *column) bool() bool {
	v := c.raw()
	if len(v) != 1 {
		c.fail(len(v))
		return false
	}
	return v[0] != 0
}

func (c *column) uuid() [16]byte {
	v := c.raw()
	if len(v) != 16 {
		c.fail(len(v))
		return [16]byte{}
	}
	return [16]byte(v)
}

// ints reads a one-dimensional array of int4 or int8 without nulls.
func (c *column) ints() []int64 {
	v := c.raw()
	if len(v) < 12 || binary.BigEndian.Uint32(v[4:]) != 0 {
		c.fail(len(v))
		return nil
	}
	if binary.BigEndian.Uint32(v) == 0 {
		return nil
	}
	if binary.BigEndian.Uint32(v) != 1 || len(v) < 20 {
		c.fail(len(v))
		return nil
	}
	n := int(binary.BigEndian.Uint32(v[12:]))
	v = v[20:]
	if n < 0 || n > len(v)/8 { // every element takes at least 8 bytes
		c.fail(len(v))
		return nil
	}
	list := make([]int64, n)
	for i := range list {
		switch {
		case len(v) >= 8 && binary.BigEndian.Uint32(v) == 4:
			list[i] = int64(int32(binary.BigEndian.Uint32(v[4:])))
			v = v[8:]
		case len(v) >= 12 && binary.BigEndian.Uint32(v) == 8:
			list[i] = int64(binary.BigEndian.Uint64(v[4:]))
			v = v[12:]
		default:
			c.fail(len(v))
			return nil
		}
	}
	return list
}
