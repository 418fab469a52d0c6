package postgres

import (
	"errors"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5/pgtype"
)

// TestArrays reads back what the hand-written encoding wrote, through pgx's own decoder and through ours.
func TestArrays(t *testing.T) {
	types := pgtype.NewMap()
	for _, want := range [][]int64{{}, {7}, {-1, 0, 1 << 62}} {
		p := &params{}
		int8Array(p, want, func(v *int64) int64 { return *v })
		int4Array(p, want, func(v *int64) int32 { return int32(*v) })
		list := p.list()
		var eight []int64
		if err := types.Scan(pgtype.Int8ArrayOID, pgtype.BinaryFormatCode, list[0], &eight); err != nil || !slices.Equal(eight, want) {
			t.Errorf("%v became %v, %v", want, eight, err)
		}
		c := column{values: list}
		if got := c.ints(); !slices.Equal(got, want) || c.err != nil {
			t.Errorf("%v became %v, %v", want, got, c.err)
		}
		for i, got := range c.ints() {
			if got != int64(int32(want[i])) {
				t.Errorf("%v: element %d is %d", want, i, got)
			}
		}
	}
	p := &params{}
	byteaArray(p, [][]byte{{1, 2}, {}}, func(v *[]byte) []byte { return *v })
	var parts [][]byte
	if err := types.Scan(pgtype.ByteaArrayOID, pgtype.BinaryFormatCode, p.list()[0], &parts); err != nil || len(parts) != 2 || len(parts[0]) != 2 {
		t.Errorf("bytea array became %v, %v", parts, err)
	}
}

// TestColumnBounds: an answer of another shape than expected is an error, never a panic.
func TestColumnBounds(t *testing.T) {
	whole := &params{}
	int8Array(whole, []int64{1, 2, 3}, func(v *int64) int64 { return *v })
	array := whole.list()[0]
	for n := range len(array) {
		c := column{values: [][]byte{array[:n]}}
		if c.ints(); !errors.Is(c.err, errWire) {
			t.Errorf("%d bytes of an array of %d: %v", n, len(array), c.err)
		}
	}
	huge := slices.Clone(array)
	huge[12] = 0x7f // number of elements
	c := column{values: [][]byte{huge}}
	if c.ints(); !errors.Is(c.err, errWire) {
		t.Errorf("two thousand million elements: %v", c.err)
	}
	for name, read := range map[string]func(*column){
		"int8": func(c *column) { c.int8() }, "int4": func(c *column) { c.int4() }, "int2": func(c *column) { c.int2() },
		"bool": func(c *column) { c.bool() }, "uuid": func(c *column) { c.uuid() },
	} {
		for _, values := range [][][]byte{{}, {nil}, {{1, 2, 3}}} {
			c := column{values: values}
			if read(&c); !errors.Is(c.err, errWire) {
				t.Errorf("%s of %v: %v", name, values, c.err)
			}
		}
	}
}
