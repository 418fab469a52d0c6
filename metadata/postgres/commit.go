package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/skeinio/skein/metadata"
)

const (
	// maxReconnects bounds how often a commit begins again because a session was lost before its second round trip: a
	// restarted server leaves as many dead connections in the pool as it has.
	maxReconnects = 3
	// againPause is the mean pause before a transaction is begun again that another one stood in the way of.
	againPause = 5 * time.Millisecond
	// rollbackTimeout bounds the ROLLBACK that keeps a connection usable.
	rollbackTimeout = time.Second
)

// Commit implements metadata.Driver.
func (d *Driver) Commit(ctx context.Context, load metadata.CommitLoad, decide func(*metadata.CommitLoaded) (*metadata.CommitSave, error)) error {
	slices.SortFunc(load.Inline, func(a, b metadata.InlinePayload) int { return bytes.Compare(a.Flush[:], b.Flush[:]) })
	return d.again(ctx, func(conn *pgxpool.Conn) error {
		c := commit{driver: d, conn: conn.Conn().PgConn(), params: d.params(), load: &load}
		defer d.done(c.params)
		return c.run(ctx, decide)
	})
}

// finalError is an error after which a transaction is not begun again here. decide of a commit holds the caller's states
// until it hears the outcome, and a new connection may have to wait for these (sawIncarnation).
type finalError struct{ err error }

func (e *finalError) Error() string { return e.err.Error() }
func (e *finalError) Unwrap() error { return e.err }

// again runs a transaction on a connection of the commit pool until it succeeds or fails for good: one that another
// stood in the way of (lock_timeout, a deadlock) is begun again as long as ctx lasts.
func (d *Driver) again(ctx context.Context, transaction func(*pgxpool.Conn) error) error {
	reconnects := 0
	for {
		conn, err := acquire(ctx, d.commits)
		if err != nil {
			return err
		}
		err = transaction(conn)
		conn.Release() // one that is closed or in a transaction is thrown away
		var decided *decideError
		var final *finalError
		switch {
		case err == nil:
			return nil
		case errors.As(err, &decided):
			return decided.err
		case errors.Is(err, metadata.ErrUnknownOutcome):
			return err
		case errors.As(err, &final):
			return unavailable(final.err)
		case ctx.Err() != nil:
			return unavailable(err)
		case worthAgain(err):
		case lost(err) && reconnects < maxReconnects:
			reconnects++
		default:
			return unavailable(err)
		}
		if pause(ctx, rand.N(2*againPause)) != nil {
			return unavailable(err)
		}
	}
}

// decideError carries an error of decide past the classification.
type decideError struct{ err error }

func (e *decideError) Error() string { return e.err.Error() }
func (e *decideError) Unwrap() error { return e.err }

// commit is one transaction under way.
type commit struct {
	driver *Driver
	conn   *pgconn.PgConn
	pipe   *pgconn.Pipeline
	params *params
	load   *metadata.CommitLoad
	cold   bool // some block is loaded from its checkpoint
}

func (c *commit) run(ctx context.Context, decide func(*metadata.CommitLoaded) (*metadata.CommitSave, error)) error {
	guard := c.driver.guard(ctx, c.conn.PID())
	defer guard.stop()
	c.pipe = c.conn.StartPipeline(ctx)
	loaded, err := c.first()
	if err != nil {
		return c.abort(ctx, err)
	}
	save, err := decide(loaded)
	if err != nil {
		return c.abort(ctx, &decideError{err})
	}
	if err := ctx.Err(); err != nil {
		return c.abort(ctx, &finalError{err})
	}
	if sent, err := c.second(save, loaded.Now); err != nil {
		if !sent || refused(err) || errors.Is(err, errNotCommitted) {
			return c.abort(ctx, &finalError{err})
		}
		c.closePipe()
		return fmt.Errorf("%w: %w", metadata.ErrUnknownOutcome, err)
	}
	if err := c.closePipe(); err != nil {
		// COMMIT was answered; what follows it is no matter of this transaction.
		c.driver.log.Debug("connection lost after a commit", "error", err)
	}
	return nil
}

func (c *commit) closePipe() error { return c.pipe.Close() }

// abort leaves the transaction behind; the connection stays usable when it is.
func (c *commit) abort(ctx context.Context, cause error) error {
	c.closePipe() // its error is cause, or follows from it
	if c.conn.IsClosed() || c.conn.TxStatus() == 'I' {
		return cause
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTimeout)
	defer cancel()
	if _, err := c.conn.Exec(ctx, "ROLLBACK").ReadAll(); err != nil {
		c.driver.log.Debug("rollback failed", "error", err)
	}
	return cause
}

func (c *commit) send(name statement) {
	c.pipe.SendQueryPrepared(string(name), c.params.list(), binaryFormat, binaryFormat)
	c.params.reset()
}

// receive reads the answer of the next statement.
func (c *commit) receive(name statement, row func(*column) error) (pgconn.CommandTag, error) {
	results, err := c.pipe.GetResults()
	if err != nil {
		return pgconn.CommandTag{}, fmt.Errorf("%s: %w", name, err)
	}
	rr, ok := results.(*pgconn.ResultReader)
	if !ok {
		return pgconn.CommandTag{}, fmt.Errorf("%s: %w: %T", name, errWire, results)
	}
	if err := eachRow(rr, row); err != nil {
		return pgconn.CommandTag{}, fmt.Errorf("%s: %w", name, err)
	}
	tag, _ := rr.Close() // closed by eachRow already: this gives its tag
	return tag, nil
}

func (c *commit) receiveSync() error {
	results, err := c.pipe.GetResults()
	if err != nil {
		return err
	}
	if _, ok := results.(*pgconn.PipelineSync); !ok {
		return fmt.Errorf("%w: %T instead of a sync", errWire, results)
	}
	return nil
}

// first is the first round trip: begin, insert inline payloads, lock, load.
func (c *commit) first() (*metadata.CommitLoaded, error) {
	c.sendFirst()
	if err := c.pipe.Sync(); err != nil {
		return nil, err
	}
	loaded := &metadata.CommitLoaded{Receipts: map[metadata.FlushID][]byte{}, InlineNew: map[metadata.FlushID]bool{}}
	if _, err := c.receive(stBegin, nil); err != nil {
		return nil, err
	}
	if len(c.load.Inline) > 0 {
		_, err := c.receive(stInline, func(col *column) error {
			loaded.InlineNew[col.uuid()] = true
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	if c.load.Txns != nil {
		if err := c.receiveTxns(loaded); err != nil {
			return nil, err
		}
	}
	b := deltas{at: make(map[metadata.BlockID]int, len(c.load.Blocks))}
	if _, err := c.receive(stLock, b.block); err != nil {
		return nil, err
	}
	var err error
	if c.cold {
		_, err = c.receive(stLoad, b.loaded)
	} else {
		_, err = c.receive(stRows, func(col *column) error { return b.row(metadata.BlockID(col.int8()), col) })
	}
	if err != nil {
		return nil, err
	}
	var lsn int64
	_, err = c.receive(stReceipts, func(col *column) error {
		loaded.Now, lsn = metadata.Millis(col.int8()), col.int8()
		if !col.null() {
			id := metadata.FlushID(col.uuid())
			loaded.Receipts[id] = bytes.Clone(col.raw())
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	c.driver.sawLSN(lsn)
	loaded.Blocks = b.list
	return loaded, c.receiveSync()
}

func (c *commit) sendFirst() {
	c.send(stBegin)
	if len(c.load.Inline) > 0 {
		c.sendInline()
	}
	if c.load.Txns != nil {
		c.sendTxns()
	}
	int8Array(c.params, c.load.Blocks, func(b *metadata.BlockSeq) int64 { return int64(b.Block) })
	c.send(stLock)
	c.cold = false
	for _, b := range c.load.Blocks {
		c.cold = c.cold || b.Seq == metadata.SeqCold
	}
	blockParams(c.params, c.load.Blocks)
	if c.cold {
		c.send(stLoad)
	} else {
		c.send(stRows)
	}
	uuidArray(c.params, c.load.Flushes, func(id *metadata.FlushID) *[16]byte { return (*[16]byte)(id) })
	c.send(stReceipts)
}

func blockParams(p *params, known []metadata.BlockSeq) {
	int8Array(p, known, func(b *metadata.BlockSeq) int64 { return int64(b.Block) })
	int8Array(p, known, func(b *metadata.BlockSeq) int64 { return int64(b.Seq) })
}

func (c *commit) sendInline() {
	list, p := c.load.Inline, c.params
	uuidArray(p, list, func(x *metadata.InlinePayload) *[16]byte { return (*[16]byte)(&x.Flush) })
	int4Array(p, list, func(x *metadata.InlinePayload) int32 { return int32(x.Size) })
	p.array(pgtype.ByteaOID, len(list), false)
	for i := range list {
		at := p.open()
		for _, part := range list[i].Payload {
			p.buf = append(p.buf, part...)
		}
		p.close(at)
	}
	p.end()
	c.send(stInline)
}

// errNotCommitted: the server answered COMMIT and says that it did not commit.
var errNotCommitted = errors.New("the server rolled the transaction back at COMMIT")

// errLocalOnly: the server committed but gave up waiting for synchronous replication.
var errLocalOnly = errors.New("committed, but not known to be replicated")

// second is the second round trip: insert and commit. sent says whether COMMIT may have reached the server.
func (c *commit) second(save *metadata.CommitSave, now metadata.Millis) (sent bool, err error) {
	order := c.sendSecond(save, now)
	localOnly(c.conn)
	if err := c.pipe.Sync(); err != nil {
		return true, err
	}
	for _, name := range order {
		if _, err := c.receive(name, nil); err != nil {
			// The server works the statements off in order: what answered with an error, even one that ends the
			// session, stands before COMMIT.
			return sqlstate(err) == "", err
		}
	}
	tag, err := c.receive(stCommit, nil)
	if err != nil {
		return true, err
	}
	if tag.String() != "COMMIT" {
		return true, fmt.Errorf("%w: it answered %s", errNotCommitted, tag.String())
	}
	if localOnly(c.conn) {
		return true, errLocalOnly
	}
	return true, nil
}

// sendSecond gives the statements sent before COMMIT, in order: rows, receipts, objects, inline payloads dropped.
func (c *commit) sendSecond(save *metadata.CommitSave, now metadata.Millis) []statement {
	var order []statement
	send := func(name statement) {
		c.send(name)
		order = append(order, name)
	}
	if len(save.Rows) > 0 {
		rowParams(c.params, save.Rows)
		send(stAddRows)
	}
	if list := save.Receipts; len(list) > 0 {
		c.params.scalar(int64(now))
		uuidArray(c.params, list, func(r *metadata.Receipt) *[16]byte { return (*[16]byte)(&r.Flush) })
		byteaArray(c.params, list, func(r *metadata.Receipt) []byte { return r.Data })
		send(stAddReceipts)
	}
	for _, kind := range []struct {
		lenient bool
		name    statement
	}{{false, stAddObjects}, {true, stKeepObjects}} {
		if list := objects(save.Objects, kind.lenient); len(list) > 0 {
			c.params.scalar(int64(now))
			objectParams(c.params, list)
			send(kind.name)
		}
	}
	if len(save.DropInline) > 0 {
		uuidArray(c.params, save.DropInline, func(id *metadata.FlushID) *[16]byte { return (*[16]byte)(id) })
		send(stDropInline)
	}
	c.sendTxnSave(save, now, send)
	c.send(stCommit)
	return order
}

// objects gives the rows of one kind, by key and each key once: a statement must not meet a key twice.
func objects(all []metadata.ObjectRow, lenient bool) []metadata.ObjectRow {
	var list []metadata.ObjectRow
	for _, o := range all {
		if o.Lenient != lenient {
			continue
		}
		i := slices.IndexFunc(list, func(x metadata.ObjectRow) bool { return x.Key == o.Key })
		switch {
		case i < 0:
			list = append(list, o)
		case !lenient:
			list[i].Refs += o.Refs
		}
	}
	slices.SortFunc(list, func(a, b metadata.ObjectRow) int { return bytes.Compare([]byte(a.Key), []byte(b.Key)) })
	return list
}

func objectParams(p *params, list []metadata.ObjectRow) {
	textArray(p, list, func(o *metadata.ObjectRow) string { return string(o.Key) })
	int8Array(p, list, func(o *metadata.ObjectRow) int64 { return o.Size })
	int4Array(p, list, func(o *metadata.ObjectRow) int32 { return int32(o.Refs) })
	int4Array(p, list, func(o *metadata.ObjectRow) int32 { return int32(o.State) })
}

func rowParams(p *params, rows []*metadata.Row) {
	int8Array(p, rows, func(r **metadata.Row) int64 { return int64((*r).Block) })
	int8Array(p, rows, func(r **metadata.Row) int64 { return int64((*r).Seq) })
	int8Array(p, rows, func(r **metadata.Row) int64 { return int64((*r).Time) })
	uuidArray(p, rows, func(r **metadata.Row) *[16]byte { return (*[16]byte)(&(*r).Flush) })
	p.array(pgtype.TextOID, len(rows), true)
	for _, r := range rows {
		if r.Object == "" {
			p.null()
		} else {
			p.text(string(r.Object))
		}
	}
	p.end()
	p.array(pgtype.ByteaOID, len(rows), false)
	for _, r := range rows {
		at := p.open()
		p.buf = metadata.AppendTouched(p.buf, r.Touched)
		p.close(at)
	}
	p.end()
	p.array(pgtype.ByteaOID, len(rows), false)
	for _, r := range rows {
		at := p.open()
		p.buf = r.Photo.AppendTo(p.buf)
		p.close(at)
	}
	p.end()
}
