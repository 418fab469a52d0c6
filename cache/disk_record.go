package cache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// A volume is records, one behind the other:
//
//	offset size
//	 0     4    magic "SKD1"
//	 4     4    CRC-32C of what follows up to the payload
//	 8     4    CRC-32C of the payload
//	12     4    length of the payload
//	16     8    position of the extent in its object
//	24     4    length of the object's key
//	28     …    the object's key, the payload: the extent as it is stored in the bucket
//
// All numbers are little-endian. Objects' keys are never used twice, so what was kept of another bucket is never asked for.
const (
	recordMagic       = "SKD1"
	recordHeaderBytes = 28
	maxKeyBytes       = 1024 // S3's bound
)

const (
	lockName     = "skein-cache.lock"
	volumePrefix = "skein-cache-"
	volumeSuffix = ".vol"
)

var (
	errBadRecord = errors.New("not a record, or damaged")
	castagnoli   = crc32.MakeTable(crc32.Castagnoli)
)

// fileSystem is what the disk tier needs of one: the seam through which tests fill the disk.
type fileSystem interface {
	open(path string, flag int) (file, error)
	remove(path string) error
}

type file interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Truncate(size int64) error
}

// osFiles is the operating system's. Files are the owner's only: they hold records.
type osFiles struct{}

func (osFiles) open(path string, flag int) (file, error) { return os.OpenFile(path, flag, 0o600) }
func (osFiles) remove(path string) error                 { return os.Remove(path) }

func volumeName(id uint32) string { return fmt.Sprintf("%s%08x%s", volumePrefix, id, volumeSuffix) }

func parseVolumeName(name string) (id uint32, ok bool) {
	hex, ok := strings.CutPrefix(name, volumePrefix)
	hex, ok2 := strings.CutSuffix(hex, volumeSuffix)
	n, err := strconv.ParseUint(hex, 16, 32)
	return uint32(n), ok && ok2 && err == nil && volumeName(uint32(n)) == name
}

func (d *Disk) path(id uint32) string { return filepath.Join(d.dir, volumeName(id)) }

// recordBytes is the size of a record with a payload of n bytes.
func recordBytes(k Key, n int64) int64 { return recordHeaderBytes + int64(len(k.Object)) + n }

// recordHeader is what stands before the payload.
func recordHeader(k Key, stored []byte) []byte {
	b := make([]byte, 0, recordHeaderBytes+len(k.Object))
	b = append(b, recordMagic...)
	b = append(b, 0, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(stored, castagnoli))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(stored)))
	b = binary.LittleEndian.AppendUint64(b, uint64(k.Position))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(k.Object)))
	b = append(b, k.Object...)
	binary.LittleEndian.PutUint32(b[4:], crc32.Checksum(b[8:], castagnoli))
	return b
}

// parseHeader reads what recordHeader made, from bytes that may go on behind it.
func parseHeader(b []byte) (k Key, payload, sum uint32, err error) {
	if len(b) < recordHeaderBytes || string(b[:4]) != recordMagic {
		return Key{}, 0, 0, errBadRecord
	}
	n := binary.LittleEndian.Uint32(b[24:])
	if n > maxKeyBytes || len(b) < recordHeaderBytes+int(n) {
		return Key{}, 0, 0, errBadRecord
	}
	b = b[:recordHeaderBytes+n]
	if binary.LittleEndian.Uint32(b[4:]) != crc32.Checksum(b[8:], castagnoli) {
		return Key{}, 0, 0, errBadRecord
	}
	k = Key{Object: string(b[recordHeaderBytes:]), Position: int64(binary.LittleEndian.Uint64(b[16:]))}
	return k, binary.LittleEndian.Uint32(b[12:]), binary.LittleEndian.Uint32(b[8:]), nil
}

func (d *Disk) writeRecord(id uint32, at int64, w diskWrite) (err error) {
	f, err := d.files.open(d.path(id), os.O_WRONLY)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	header := recordHeader(w.key, w.stored)
	if _, err := f.WriteAt(header, at); err != nil {
		return err
	}
	_, err = f.WriteAt(w.stored, at+int64(len(header)))
	return err
}

func (d *Disk) truncate(id uint32, size int64) (err error) {
	f, err := d.files.open(d.path(id), os.O_WRONLY)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return f.Truncate(size)
}

// readRecord reads a payload into memory of its own and checks it.
func (d *Disk) readRecord(id uint32, p place, k Key) (stored []byte, err error) {
	f, err := d.files.open(d.path(id), os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	header := make([]byte, recordHeaderBytes+len(k.Object))
	if _, err := f.ReadAt(header, int64(p.offset)); err != nil {
		return nil, err
	}
	got, length, sum, err := parseHeader(header)
	if err != nil {
		return nil, err
	}
	if got != k || length != p.length {
		return nil, errBadRecord // two extents with one hash
	}
	stored = make([]byte, length)
	if _, err := f.ReadAt(stored, int64(p.offset)+int64(len(header))); err != nil {
		return nil, err
	}
	if crc32.Checksum(stored, castagnoli) != sum {
		return nil, errBadRecord
	}
	return stored, nil
}

// indexed is a record found by readIndex.
type indexed struct {
	key   Key
	place place // without the volume
}

// readIndex reads the headers of a volume's records, at most limit, up to the first that is none. Payloads are checked when
// they are read.
func (d *Disk) readIndex(id uint32, size int64, limit int) []indexed {
	f, err := d.files.open(d.path(id), os.O_RDONLY)
	if err != nil {
		d.metrics.failed("read")
		return nil
	}
	var records []indexed
	buf := make([]byte, recordHeaderBytes+maxKeyBytes)
	for at := int64(0); at < size && len(records) < limit; {
		n, err := f.ReadAt(buf, at)
		if err != nil && !errors.Is(err, io.EOF) {
			d.metrics.failed("read")
			break
		}
		k, length, _, err := parseHeader(buf[:n])
		next := at + recordBytes(k, int64(length))
		if err != nil || next > size {
			break
		}
		records = append(records, indexed{k, place{offset: uint32(at), length: length}})
		at = next
	}
	if err := f.Close(); err != nil {
		d.metrics.failed("read")
	}
	return records
}
