package segment

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/skeinio/skein/internal/record"
)

// DumpOptions says what Dump shows.
type DumpOptions struct {
	// JSON writes one JSON object instead of a table.
	JSON bool
	// Batches also lists the header of every batch, which reads the whole object.
	Batches bool
}

// The JSON names of a dump are part of the command line's contract: add, do not
// rename.
type dumpSegment struct {
	Version   uint16       `json:"version"`
	Level     uint16       `json:"level"`
	ID        string       `json:"id"`
	CreatedMs int64        `json:"created_ms"`
	Size      int64        `json:"size"`
	Footer    dumpFooter   `json:"footer"`
	Extents   []dumpExtent `json:"extents"`
}

type dumpFooter struct {
	Position int64 `json:"position"`
	Length   int64 `json:"length"`
}

type dumpBlob struct {
	Codec        string `json:"codec"`
	Position     int64  `json:"position"`
	StoredLength int64  `json:"stored_length"`
	RawLength    int64  `json:"raw_length"`
	CRC          string `json:"crc32c"`
	BaseOffset   int64  `json:"base_offset"`
	LastOffset   int64  `json:"last_offset"`
	MaxTimestamp int64  `json:"max_timestamp"`

	Batches []dumpBatch `json:"batches,omitempty"`
}

type dumpExtent struct {
	TopicID   string `json:"topic_id"`
	Partition int32  `json:"partition"`
	dumpBlob
	BatchCount  uint32     `json:"batch_count"`
	RecordCount uint32     `json:"record_count"`
	Chunks      []dumpBlob `json:"chunks,omitempty"`
}

type dumpBatch struct {
	Position        int    `json:"position"` // in the decoded extent or chunk
	Size            int    `json:"size"`
	BaseOffset      int64  `json:"base_offset"`
	LastOffsetDelta int32  `json:"last_offset_delta"`
	RecordCount     int32  `json:"record_count"`
	Codec           string `json:"codec"`
	Flags           string `json:"flags,omitempty"`
	BaseTimestamp   int64  `json:"base_timestamp"`
	MaxTimestamp    int64  `json:"max_timestamp"`
	ProducerID      int64  `json:"producer_id"`
	ProducerEpoch   int16  `json:"producer_epoch"`
	BaseSequence    int32  `json:"base_sequence"`
	CRC             string `json:"crc32c"`
}

// Dump writes a segment's index, as a table for people or as JSON, both in the
// object's own order.
func Dump(w io.Writer, r io.ReaderAt, size int64, o DumpOptions) error {
	x, err := OpenIndex(r, size)
	if err != nil {
		return err
	}
	d := dumpSegment{
		Version: x.Version, Level: x.Level, ID: x.ID.String(), CreatedMs: x.CreatedMs, Size: x.Size,
		Footer:  dumpFooter{x.FooterPosition, x.Size - TrailerBytes - x.FooterPosition},
		Extents: make([]dumpExtent, 0, len(x.Extents)),
	}
	for i := range x.Extents {
		e, err := dumpOne(r, &x.Extents[i], o)
		if err != nil {
			return fmt.Errorf("extent %d: %w", i, err)
		}
		d.Extents = append(d.Extents, e)
	}
	if o.JSON {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(d)
	}
	return d.table(w)
}

func dumpOne(r io.ReaderAt, e *Extent, o DumpOptions) (dumpExtent, error) {
	d := dumpExtent{
		TopicID: e.TopicID.String(), Partition: e.Partition, BatchCount: e.Batches, RecordCount: e.Records,
	}
	whole := Chunk{e.Codec, e.Position, e.StoredLength, e.RawLength, e.CRC, e.BaseOffset, e.LastOffset, e.MaxTimestamp}
	var err error
	if d.dumpBlob, err = dumpChunk(r, whole, o.Batches && e.Codec != CodecChunked); err != nil {
		return d, err
	}
	for i, c := range e.Chunks {
		b, err := dumpChunk(r, c, o.Batches)
		if err != nil {
			return d, fmt.Errorf("chunk %d: %w", i, err)
		}
		d.Chunks = append(d.Chunks, b)
	}
	return d, nil
}

// dumpChunk describes a chunk, or an extent as if it were one.
func dumpChunk(r io.ReaderAt, c Chunk, batches bool) (dumpBlob, error) {
	d := dumpBlob{
		Codec: c.Codec.String(), Position: c.Position, StoredLength: c.StoredLength, RawLength: c.RawLength,
		CRC: hexCRC(c.CRC), BaseOffset: c.BaseOffset, LastOffset: c.LastOffset, MaxTimestamp: c.MaxTimestamp,
	}
	if !batches {
		return d, nil
	}
	b, err := readAt(r, c.Position, c.StoredLength)
	if err != nil {
		return d, err
	}
	if b, err = DecodeExtent(b, c.Codec, c.RawLength, c.CRC); err != nil {
		return d, err
	}
	for h, err := range record.Batches(b) {
		if err != nil {
			return d, fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		d.Batches = append(d.Batches, dumpBatch{
			Position: h.Position, Size: h.Size(), BaseOffset: h.BaseOffset, LastOffsetDelta: h.LastOffsetDelta,
			RecordCount: h.RecordCount, Codec: h.Codec().String(), Flags: flags(h.Header), BaseTimestamp: h.BaseTimestamp,
			MaxTimestamp: h.MaxTimestamp, ProducerID: h.ProducerID, ProducerEpoch: h.ProducerEpoch,
			BaseSequence: h.BaseSequence, CRC: hexCRC(h.CRC),
		})
	}
	return d, nil
}

func hexCRC(crc uint32) string { return fmt.Sprintf("%08x", crc) }

func flags(h record.Header) string {
	var f []string
	if h.Transactional() {
		f = append(f, "transactional")
	}
	if h.Control() {
		f = append(f, "control")
	}
	if h.LogAppendTime() {
		f = append(f, "log-append-time")
	}
	if h.DeleteHorizon() {
		f = append(f, "delete-horizon")
	}
	return strings.Join(f, ",")
}

// table writes the dump for people.
func (d *dumpSegment) table(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	// Errors of a tabwriter stay until Flush.
	fmt.Fprintf(tw, "segment %s, version %d, level %d, %d bytes, created %s\n",
		d.ID, d.Version, d.Level, d.Size, formatMs(d.CreatedMs))
	fmt.Fprintf(tw, "%d extents, footer of %d bytes at %d\n\n", len(d.Extents), d.Footer.Length, d.Footer.Position)
	fmt.Fprintln(tw, "POSITION\tSTORED\tRAW\tCODEC\tCRC32C\tTOPIC\tPARTITION\tBATCHES\tRECORDS\tOFFSETS\tMAX TIMESTAMP")
	for _, e := range d.Extents {
		fmt.Fprintf(tw, "%s\t%s\t%d\t%d\t%d\t%s\t%s\n", e.columns(""), e.TopicID, e.Partition, e.BatchCount, e.RecordCount,
			e.offsets(), formatMs(e.MaxTimestamp))
		e.tableBatches(tw)
		for _, c := range e.Chunks {
			fmt.Fprintf(tw, "%s\tchunk\t\t\t\t%s\t%s\n", c.columns(" "), c.offsets(), formatMs(c.MaxTimestamp))
			c.tableBatches(tw)
		}
	}
	return tw.Flush()
}

func (b dumpBlob) tableBatches(w io.Writer) {
	for _, h := range b.Batches {
		fmt.Fprintf(w, "  +%d\t%d\t\t%s\t%s\tbatch\t\t\t%d\t%s\t%s%s\n", h.Position, h.Size, h.Codec, h.CRC,
			h.RecordCount, h.offsets(), formatMs(h.MaxTimestamp), h.note())
	}
}

func (b dumpBlob) columns(indent string) string {
	return fmt.Sprintf("%s%d\t%d\t%d\t%s\t%s", indent, b.Position, b.StoredLength, b.RawLength, b.Codec, b.CRC)
}

func (b dumpBlob) offsets() string {
	if b.BaseOffset == UnknownOffset {
		return "-"
	}
	return fmt.Sprintf("%d..%d", b.BaseOffset, b.LastOffset)
}

// offsets shows those in the batch itself, which mean nothing at level 0 but for
// their number.
func (b dumpBatch) offsets() string {
	return fmt.Sprintf("%d..%d", b.BaseOffset, b.BaseOffset+int64(b.LastOffsetDelta))
}

func (b dumpBatch) note() string {
	s := ""
	if b.ProducerID >= 0 {
		s += fmt.Sprintf(", producer %d epoch %d sequence %d", b.ProducerID, b.ProducerEpoch, b.BaseSequence)
	}
	if b.Flags != "" {
		s += ", " + b.Flags
	}
	return s
}

func formatMs(ms int64) string {
	if ms <= 0 {
		return "-"
	}
	return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z")
}
