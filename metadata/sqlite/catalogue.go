package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/skeinio/skein/metadata"
)

// Catalogue implements metadata.Driver. The writing transaction is the catalogue's lock.
func (d *Driver) Catalogue(
	ctx context.Context, load metadata.CatalogueLoad,
	decide func(*metadata.CatalogueLoaded) (*metadata.CatalogueSave, error),
) error {
	return d.write(ctx, func(s *session) error {
		loaded, err := s.catalogue(load)
		if err != nil {
			return err
		}
		loaded.Now = d.millis()
		save, err := decide(loaded)
		if err != nil {
			return err
		}
		return s.saveCatalogue(save)
	}, nil)
}

func (s *session) catalogue(load metadata.CatalogueLoad) (*metadata.CatalogueLoaded, error) {
	l := &metadata.CatalogueLoaded{Next: map[metadata.BlockID][metadata.SlotsPerBlock]metadata.Offset{}}
	err := s.row("SELECT catalogue_version, next_block FROM cluster").Scan(&l.Version, &l.NextBlock)
	if err != nil {
		return nil, failure(err)
	}
	if err := s.wantedTopics(load, l); err != nil {
		return nil, err
	}
	for i := range l.Topics {
		if l.Partitions, err = s.partitions(l.Partitions, l.Topics[i].ID); err != nil {
			return nil, err
		}
	}
	if err := s.wantedBlocks(load, l); err != nil {
		return nil, err
	}
	if !load.Shared {
		return l, nil
	}
	var shared metadata.BlockRow
	err = scanBlock(s.row("SELECT "+blockColumns+" FROM blocks WHERE shared = 1 AND used < 64 ORDER BY block LIMIT 1"), &shared)
	if err == nil {
		l.SharedRow = &shared
	} else if !errors.Is(err, sql.ErrNoRows) {
		return nil, err
	}
	return l, nil
}

// wantedTopics loads each topic that is asked for once, by name, id or canonical name.
func (s *session) wantedTopics(load metadata.CatalogueLoad, l *metadata.CatalogueLoaded) error {
	seen := map[metadata.TopicID]bool{}
	get := func(column string, key any) error {
		var t metadata.TopicRow
		err := scanTopic(s.row("SELECT "+topicColumns+" FROM topics WHERE "+column+" = ?", key), &t)
		if errors.Is(err, sql.ErrNoRows) || seen[t.ID] {
			return nil
		}
		seen[t.ID] = true
		l.Topics = append(l.Topics, t)
		return err
	}
	for _, name := range load.Names {
		if err := get("name", name); err != nil {
			return err
		}
	}
	for _, name := range load.Canonical {
		if err := get("canonical", name); err != nil {
			return err
		}
	}
	for _, id := range load.IDs {
		if err := get("id", id[:]); err != nil {
			return err
		}
	}
	return nil
}

// wantedBlocks loads the blocks that are asked for, and with LockBlocks those of the topics and the next offsets.
func (s *session) wantedBlocks(load metadata.CatalogueLoad, l *metadata.CatalogueLoaded) error {
	ids := slices.Clone(load.Blocks)
	if load.LockBlocks {
		for i := range l.Partitions {
			ids = append(ids, l.Partitions[i].Block)
		}
	}
	slices.Sort(ids)
	for _, id := range slices.Compact(ids) {
		var b metadata.BlockRow
		err := scanBlock(s.row("SELECT "+blockColumns+" FROM blocks WHERE block = ?", int64(id)), &b)
		if errors.Is(err, sql.ErrNoRows) {
			continue
		}
		if err != nil {
			return err
		}
		l.Blocks = append(l.Blocks, b)
		if !load.LockBlocks {
			continue
		}
		var raw []byte
		var photo metadata.Photo
		err = s.row("SELECT photo FROM level0 WHERE place BETWEEN ? AND ? ORDER BY place DESC LIMIT 1",
			place(id, 0), place(id, maxSeq)).Scan(&raw)
		switch {
		case errors.Is(err, sql.ErrNoRows):
		case err != nil:
			return failure(err)
		default:
			if err := photo.Decode(raw); err != nil {
				return fmt.Errorf("newest row of block %d: %w", id, err)
			}
		}
		l.Next[id] = photo.Next
	}
	return nil
}

const topicColumns = "id, name, configs, replication_factor, version, created"

// scanTopic reads topicColumns.
func scanTopic(row scanner, t *metadata.TopicRow) error {
	var id, configs []byte
	if err := row.Scan(&id, &t.Name, &configs, &t.ReplicationFactor, &t.Version, &t.Created); err != nil {
		return failure(err)
	}
	if copy(t.ID[:], id) != len(t.ID) {
		return fmt.Errorf("%w: topic id of %d bytes", metadata.ErrCorrupt, len(id))
	}
	if err := json.Unmarshal(configs, &t.Configs); err != nil {
		return fmt.Errorf("%w: configs of topic %q: %w", metadata.ErrCorrupt, t.Name, err)
	}
	return nil
}

// partitions appends a topic's partitions by index.
func (s *session) partitions(to []metadata.PartitionRow, topic metadata.TopicID) ([]metadata.PartitionRow, error) {
	err := s.each("SELECT idx, block, slot, created FROM partitions WHERE topic = ? ORDER BY idx", []any{topic[:]},
		func(rows *sql.Rows) error {
			p := metadata.PartitionRow{Topic: topic}
			err := rows.Scan(&p.Index, &p.Block, &p.Slot, &p.Created)
			to = append(to, p)
			return err
		})
	return to, err
}

func (s *session) saveCatalogue(save *metadata.CatalogueSave) error {
	for i := range save.Topics {
		if err := s.saveTopic(&save.Topics[i]); err != nil {
			return err
		}
	}
	for i := range save.Partitions {
		p := &save.Partitions[i]
		_, err := s.exec("INSERT INTO partitions (topic, idx, block, slot, created) VALUES (?, ?, ?, ?, ?)",
			p.Topic[:], p.Index, int64(p.Block), int64(p.Slot), int64(p.Created))
		if err != nil {
			return err
		}
	}
	for i := range save.Blocks {
		if err := s.saveBlock(&save.Blocks[i]); err != nil {
			return err
		}
	}
	if err := s.deleteTopics(save); err != nil {
		return err
	}
	if save.NextBlock > 0 {
		if _, err := s.exec("UPDATE cluster SET next_block = ?", int64(save.NextBlock)); err != nil {
			return err
		}
	}
	if save.Version > 0 {
		if _, err := s.exec("UPDATE cluster SET catalogue_version = ?", int64(save.Version)); err != nil {
			return err
		}
	}
	return nil
}

func (s *session) saveTopic(t *metadata.TopicRow) error {
	configs := t.Configs
	if configs == nil {
		configs = map[string]string{}
	}
	text, err := json.Marshal(configs)
	if err != nil {
		return err
	}
	_, err = s.exec(`INSERT INTO topics (id, name, canonical, configs, replication_factor, version, created)
		VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET configs = excluded.configs,
		replication_factor = excluded.replication_factor, version = excluded.version`,
		t.ID[:], t.Name, metadata.CanonicalName(t.Name), string(text), t.ReplicationFactor, int64(t.Version), int64(t.Created))
	return err
}

// deleteTopics removes topics, leaves tombstones, and drops the oldest tombstones over the bound.
func (s *session) deleteTopics(save *metadata.CatalogueSave) error {
	if len(save.DeleteTopics) == 0 {
		return nil
	}
	for _, id := range save.DeleteTopics {
		if _, err := s.exec("DELETE FROM partitions WHERE topic = ?", id[:]); err != nil {
			return err
		}
		if _, err := s.exec("DELETE FROM topics WHERE id = ?", id[:]); err != nil {
			return err
		}
		if _, err := s.exec("DELETE FROM group_offsets WHERE topic = ?", id[:]); err != nil {
			return err
		}
		if _, err := s.exec("INSERT INTO tombstones (version, topic) VALUES (?, ?)", int64(save.Version), id[:]); err != nil {
			return err
		}
	}
	var floor int64
	err := s.row("SELECT version FROM tombstones ORDER BY version DESC LIMIT 1 OFFSET ?", metadata.TombstonesKept).Scan(&floor)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return failure(err)
	}
	if _, err := s.exec("DELETE FROM tombstones WHERE version <= ?", floor); err != nil {
		return err
	}
	_, err = s.exec("UPDATE cluster SET tombstone_floor = ?", floor)
	return err
}

// LoadTopics implements metadata.Driver.
func (d *Driver) LoadTopics(ctx context.Context, since metadata.CatalogueVersion) (*metadata.TopicsLoaded, error) {
	l := &metadata.TopicsLoaded{}
	err := d.read(ctx, func(s *session) error {
		var floor metadata.CatalogueVersion
		err := s.row("SELECT catalogue_version, tombstone_floor FROM cluster").Scan(&l.Version, &floor)
		if err != nil {
			return failure(err)
		}
		if since == l.Version {
			return nil
		}
		l.Full = since < 0 || since < floor || since > l.Version
		if l.Full {
			since = -1
		}
		return s.topicsSince(since, l)
	})
	if err != nil {
		return nil, err
	}
	return l, nil
}

func (s *session) topicsSince(since metadata.CatalogueVersion, l *metadata.TopicsLoaded) error {
	err := s.each("SELECT "+topicColumns+" FROM topics WHERE version > ? ORDER BY version, id", []any{int64(since)},
		func(rows *sql.Rows) error {
			var t metadata.TopicRow
			err := scanTopic(rows, &t)
			l.Topics = append(l.Topics, t)
			return err
		})
	if err != nil {
		return err
	}
	for i := range l.Topics {
		if l.Partitions, err = s.partitions(l.Partitions, l.Topics[i].ID); err != nil {
			return err
		}
	}
	if l.Full {
		return nil
	}
	return s.each("SELECT topic FROM tombstones WHERE version > ?", []any{int64(since)}, func(rows *sql.Rows) error {
		var raw []byte
		if err := rows.Scan(&raw); err != nil {
			return err
		}
		var id metadata.TopicID
		if copy(id[:], raw) != len(id) {
			return fmt.Errorf("%w: topic id of %d bytes", metadata.ErrCorrupt, len(raw))
		}
		l.Deleted = append(l.Deleted, id)
		return nil
	})
}

// ClusterID implements metadata.Driver.
func (d *Driver) ClusterID(ctx context.Context) (string, error) {
	var id string
	err := d.read(ctx, func(s *session) error {
		return failure(s.row("SELECT cluster_id FROM cluster").Scan(&id))
	})
	return id, err
}
