package agent

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// fill sets every field of a kmsg value to something.
func fill(rng *rand.Rand, v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if rng.IntN(4) > 0 {
			v.Set(reflect.New(v.Type().Elem()))
			fill(rng, v.Elem())
		}
	case reflect.Struct:
		if tags, ok := v.Addr().Interface().(*kmsg.Tags); ok {
			for range rng.IntN(3) {
				tags.Set(100+rng.Uint32N(1000), make([]byte, rng.IntN(5)))
			}
			return
		}
		if d, ok := v.Addr().Interface().(interface{ Default() }); ok {
			d.Default()
		}
		for i := range v.NumField() {
			if v.Type().Field(i).Name != "Version" {
				fill(rng, v.Field(i))
			}
		}
	case reflect.Slice:
		n := rng.IntN(4)
		v.Set(reflect.MakeSlice(v.Type(), n, n))
		for i := range n {
			fill(rng, v.Index(i))
		}
	case reflect.Array:
		for i := range v.Len() {
			fill(rng, v.Index(i))
		}
	case reflect.String:
		v.SetString(fmt.Sprintf("s%d", rng.IntN(1e6)))
	case reflect.Bool:
		v.SetBool(rng.IntN(2) == 0)
	case reflect.Uint8:
		v.SetUint(rng.Uint64N(256))
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(1 + rng.Int64N(100))
	default:
		panic("cannot fill " + v.Type().String())
	}
}

// randomRequest gives a request with something in every field.
func randomRequest(rng *rand.Rand, key, version int16) kmsg.Request {
	req := kmsg.RequestForKey(key)
	fill(rng, reflect.ValueOf(req).Elem())
	req.SetVersion(version)
	return req
}

func TestSchemasAreKmsgs(t *testing.T) {
	for key, s := range schemas() {
		top := kmsg.RequestForKey(key)
		for version := int16(0); version <= top.MaxVersion(); version++ {
			if key == keyApiVersions && version > 4 {
				continue // not served
			}
			rng := rand.New(rand.NewPCG(uint64(key), uint64(version)))
			for range 50 {
				req := randomRequest(rng, key, version)
				b := req.AppendTo(nil)
				if req.IsFlexible() != (version >= s.flexible) {
					t.Fatalf("%T version %d: flexible is %v", req, version, req.IsFlexible())
				}
				used, decoded, err := s.check(b, version)
				if err != nil || used != len(b) {
					t.Fatalf("%T version %d: %d of %d bytes used, %v", req, version, used, len(b), err)
				}
				if decoded < int64(len(b)) {
					t.Fatalf("%T version %d: %d bytes are said to take %d", req, version, len(b), decoded)
				}
				for n := range b {
					if _, _, err := s.check(b[:n], version); err == nil {
						t.Fatalf("%T version %d: %d of %d bytes pass", req, version, n, len(b))
					}
				}
			}
		}
	}
}

// TestElementSizes checks the constants that decoded requests are measured with.
func TestElementSizes(t *testing.T) {
	var walk func(path string, typ reflect.Type)
	walk = func(path string, typ reflect.Type) {
		switch typ.Kind() {
		case reflect.Struct:
			for i := range typ.NumField() {
				walk(path+"."+typ.Field(i).Name, typ.Field(i).Type)
			}
		case reflect.Pointer:
			walk(path, typ.Elem())
		case reflect.Slice:
			limit := uintptr(primitiveElementBytes)
			if typ.Elem().Kind() == reflect.Struct {
				limit = structElementBytes
			}
			if size := typ.Elem().Size(); size > limit {
				t.Errorf("%s: an element takes %d bytes", path, size)
			}
			walk(path, typ.Elem())
		}
	}
	for key := range schemas() {
		typ := reflect.TypeOf(kmsg.RequestForKey(key)).Elem()
		walk(typ.Name(), typ)
	}
}

// TestHostileCounts: counts that kmsg would believe.
func TestHostileCounts(t *testing.T) {
	all := schemas()
	huge := binary.AppendUvarint(nil, 0xffffffff)
	cases := []struct {
		name    string
		key     int16
		version int16
		message []byte
	}{
		{"tags", 3, 12, append([]byte{0, 0, 0}, huge...)},
		{"tags in a tag", 1, 15, append(fetchUpToTags(), append([]byte{1, 1, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, huge...)...)},
		{"compact array", 3, 12, huge},
		{"array", 3, 1, []byte{0x7f, 0xff, 0xff, 0xff}},
		{"varint of six bytes", 3, 12, []byte{0x80, 0x80, 0x80, 0x80, 0x80, 0x01, 0, 0, 0}},
	}
	for _, c := range cases {
		if _, _, err := all[c.key].check(c.message, c.version); err == nil {
			t.Errorf("%s: passes", c.name)
		}
	}
}

// fetchUpToTags is an empty Fetch of version 15 without its tags.
func fetchUpToTags() []byte {
	req := kmsg.NewPtrFetchRequest()
	req.SetVersion(15)
	b := req.AppendTo(nil)
	return b[:len(b)-1]
}

func FuzzSchemas(f *testing.F) {
	rng := rand.New(rand.NewPCG(1, 2))
	for key := range schemas() {
		for version := range kmsg.RequestForKey(key).MaxVersion() + 1 {
			f.Add(key, version, randomRequest(rng, key, version).AppendTo(nil))
		}
	}
	all := schemas()
	f.Fuzz(func(t *testing.T, key, version int16, message []byte) {
		s := all[key]
		if s == nil || version < 0 || version > kmsg.RequestForKey(key).MaxVersion() || len(message) > 1<<16 {
			return
		}
		if key == keyApiVersions && version > 4 {
			return
		}
		used, decoded, err := s.check(message, version)
		if err != nil {
			return
		}
		if used > len(message) || decoded > int64(len(message))*(structElementBytes+1) {
			t.Fatalf("%d bytes: %d used, %d decoded", len(message), used, decoded)
		}
		// What passes the walk kmsg reads to the same end, or refuses for a null where none may be.
		req := kmsg.RequestForKey(key)
		req.SetVersion(version)
		if err := req.ReadFrom(message[:used]); err == nil && used > 0 && req.ReadFrom(message[:used-1]) == nil {
			t.Fatalf("%T version %d: kmsg needs fewer than %d bytes", req, version, used)
		}
	})
}
