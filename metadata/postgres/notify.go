package postgres

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/skeinio/skein/metadata"
)

const (
	// channel is what agents LISTEN on. Channels belong to a database.
	channel = "skein"
	// maxPayload is Postgres' bound on a notification, in bytes.
	maxPayload = 7999
	// payloadAll says that anything may have moved.
	payloadAll = "all"
	// notifyTimeout bounds one notification.
	notifyTimeout = 2 * time.Second
	// minListenBackoff and maxListenBackoff bound the pause before LISTEN is tried again.
	minListenBackoff = 50 * time.Millisecond
	maxListenBackoff = 2 * time.Second
	// listenPing is how long the listener waits in silence before it asks whether the connection is still there.
	listenPing = 15 * time.Second
)

// Notify implements metadata.Driver. It has a connection of its own with synchronous_commit off: NOTIFY takes a
// database-wide lock across the commit's fsync.
func (d *Driver) Notify(ctx context.Context, event metadata.Event) error {
	payload := encodeEvent(event)
	if payload == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, notifyTimeout)
	defer cancel()
	if _, err := d.notify.Exec(ctx, "SELECT pg_notify($1, $2)", channel, payload); err != nil {
		return fmt.Errorf("notify: %w", unavailable(err))
	}
	return nil
}

// encodeEvent writes an event as fields separated by spaces: b<block>:<seq>, r<block> for a changed row, c<version> of
// the catalogue; "all" when that does not fit. Nothing moved: "".
func encodeEvent(e metadata.Event) string {
	if e.All {
		return payloadAll
	}
	var b []byte
	field := func(kind byte, v int64) {
		if len(b) > 0 {
			b = append(b, ' ')
		}
		b = strconv.AppendInt(append(b, kind), v, 10)
	}
	if e.Agents {
		b = append(b, agentsMoved...)
	}
	if e.Catalogue != 0 {
		field('c', int64(e.Catalogue))
	}
	for _, id := range e.Changed {
		field('r', int64(id))
	}
	for _, x := range e.Blocks {
		field('b', int64(x.Block))
		b = strconv.AppendInt(append(b, ':'), int64(x.Seq), 10)
		if len(b) > maxPayload {
			break
		}
	}
	if len(b) > maxPayload {
		return payloadAll
	}
	return string(appendGroups(b, e))
}

// agentsMoved is the field that says that agents came or went.
const agentsMoved = "A"

// allGroups is the field that says that any group may have moved.
const allGroups = "G"

// appendGroups adds the groups that moved, as many as fit: g<id in base64url>:<version>, or allGroups.
func appendGroups(b []byte, e metadata.Event) []byte {
	if !e.AllGroups && len(e.Groups) == 0 {
		return b
	}
	start := len(b)
	if start > 0 {
		b = append(b, ' ')
	}
	fields := len(b)
	for i, g := range e.Groups {
		if i > 0 {
			b = append(b, ' ')
		}
		b = base64.RawURLEncoding.AppendEncode(append(b, 'g'), []byte(g.ID))
		b = strconv.AppendInt(append(b, ':'), g.Version, 10)
		if len(b) > maxPayload {
			break
		}
	}
	if !e.AllGroups && len(b) <= maxPayload {
		return b
	}
	if fields+len(allGroups) > maxPayload {
		return append(b[:0], payloadAll...)
	}
	return append(b[:fields], allGroups...)
}

// decodeEvent reads what encodeEvent wrote. What it does not understand, from a newer version, means "all".
func decodeEvent(payload string) metadata.Event {
	var e metadata.Event
	for field := range strings.FieldsSeq(payload) {
		switch field {
		case allGroups:
			e.AllGroups = true
			continue
		case agentsMoved:
			e.Agents = true
			continue
		}
		if field[0] == 'g' {
			g, ok := decodeGroup(field[1:])
			if !ok {
				return metadata.Event{All: true}
			}
			e.Groups = append(e.Groups, g)
			continue
		}
		number, seq, isBlock := strings.Cut(field[1:], ":")
		v, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			return metadata.Event{All: true}
		}
		switch {
		case field[0] == 'b' && isBlock:
			s, err := strconv.ParseInt(seq, 10, 64)
			if err != nil {
				return metadata.Event{All: true}
			}
			e.Blocks = append(e.Blocks, metadata.BlockSeq{Block: metadata.BlockID(v), Seq: metadata.Seq(s)})
		case field[0] == 'c' && !isBlock:
			e.Catalogue = max(e.Catalogue, metadata.CatalogueVersion(v))
		case field[0] == 'r' && !isBlock:
			e.Changed = append(e.Changed, metadata.BlockID(v))
		default:
			return metadata.Event{All: true}
		}
	}
	return e
}

func decodeGroup(field string) (g metadata.GroupVersion, ok bool) {
	id, version, _ := strings.Cut(field, ":")
	raw, err := base64.RawURLEncoding.DecodeString(id)
	if err != nil {
		return g, false
	}
	v, err := strconv.ParseInt(version, 10, 64)
	return metadata.GroupVersion{ID: metadata.GroupID(raw), Version: v}, err == nil
}

// Listen implements metadata.Driver.
func (d *Driver) Listen(ctx context.Context, fn func(metadata.Event)) error {
	backoff := minListenBackoff
	for {
		heard, err := d.listenOnce(ctx, fn)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if heard {
			backoff = minListenBackoff
		}
		d.log.Warn("wake-ups interrupted", "again_in", backoff, "error", err)
		if err := pause(ctx, backoff/2+rand.N(backoff/2+1)); err != nil {
			return err
		}
		backoff = min(2*backoff, maxListenBackoff)
	}
}

// listenOnce listens on one connection until that fails. heard says that it listened at all.
func (d *Driver) listenOnce(ctx context.Context, fn func(metadata.Event)) (heard bool, err error) {
	config, err := connConfig(d.url)
	if err != nil {
		return false, err
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return false, explain(err, config)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := d.checkServer(ctx, conn); err != nil {
		return false, explain(err, config)
	}
	if _, err := conn.Exec(ctx, "LISTEN "+channel); err != nil {
		return false, err
	}
	fn(metadata.Event{All: true}) // after LISTEN: what moved before it is covered by a refresh now
	for {
		wait, cancel := context.WithTimeout(ctx, listenPing)
		n, err := conn.WaitForNotification(wait)
		timedOut := wait.Err() != nil && ctx.Err() == nil
		cancel()
		switch {
		case err == nil:
			fn(decodeEvent(n.Payload))
		case timedOut && !conn.IsClosed():
			if err := d.ping(ctx, conn); err != nil {
				return true, err
			}
		default:
			return true, err
		}
	}
}

func (d *Driver) ping(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, notifyTimeout)
	defer cancel()
	if err := conn.Ping(ctx); err != nil {
		return errors.Join(errors.New("listening connection does not answer"), err)
	}
	return nil
}
