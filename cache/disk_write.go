package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// write writes an extent, or not: after an error nothing is written for diskPause.
func (d *Disk) write(w diskWrite) {
	if time.Now().Before(d.resumeAt) {
		d.metrics.dropped[dropPaused].Inc()
		return
	}
	err := d.append(w)
	if errors.Is(err, fs.ErrNotExist) {
		err = d.append(w) // the file was removed; into another one
	}
	if err == nil {
		return
	}
	d.metrics.failed("write")
	d.metrics.dropped[dropPaused].Inc()
	d.resumeAt = time.Now().Add(diskPause)
	d.log.Warn("the disk cache cannot be written to; reads go on from what it has and from the bucket",
		"error", err, "retry_in", diskPause)
}

// append writes a record behind the last one, in a new volume where the active one is full.
func (d *Disk) append(w diskWrite) error {
	h := d.hash(w.key)
	n := recordBytes(w.key, int64(len(w.stored)))
	d.mu.Lock()
	_, there := d.index[h]
	v := d.active
	full := v != nil && (v.size+n > d.volumeBytes || len(v.hashes) >= d.maxEntries/diskVolumes)
	if full {
		d.seal()
		v = nil
	}
	d.mu.Unlock()
	if there {
		return nil
	}
	if v == nil {
		var err error
		if v, err = d.newVolume(); err != nil {
			return err
		}
	}
	if err := d.writeRecord(v.id, v.size, w); err != nil {
		d.writeFailed(v, err)
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.active != v {
		return nil // a reader found the file gone
	}
	d.index[h] = place{volume: v.id, offset: uint32(v.size), length: uint32(len(w.stored))}
	v.hashes = append(v.hashes, h)
	v.size += n
	d.used += n
	d.metrics.writtenBytes.Add(float64(n))
	return nil
}

// seal ends the active volume. d.mu is held.
func (d *Disk) seal() {
	if v := d.active; v != nil {
		d.active = nil
		d.sealed.Add(v.id, v)
	}
}

// writeFailed takes back what was written of a record, or the whole volume where that cannot be done.
func (d *Disk) writeFailed(v *volume, err error) {
	if errors.Is(err, fs.ErrNotExist) {
		d.lose(v)
		return
	}
	if err := d.truncate(v.id, v.size); err != nil || v.size == 0 {
		d.mu.Lock()
		detached := d.detach(v)
		if detached {
			d.doomed = append(d.doomed, v)
		}
		d.mu.Unlock()
		d.removeDoomed()
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.active == v {
		d.seal()
	}
}

// newVolume makes room for a volume and begins it.
func (d *Disk) newVolume() (*volume, error) {
	if err := d.hold(); err != nil {
		return nil, err
	}
	if err := d.makeRoom(); err != nil {
		return nil, err
	}
	f, err := d.files.open(d.path(d.nextID), os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	d.nextID++ // a name that is taken is not tried again
	if err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	v := &volume{id: d.nextID - 1}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.active = v
	return v, nil
}

// makeRoom removes the volumes that were not read for the longest until a whole one fits.
func (d *Disk) makeRoom() error {
	d.removeDoomed()
	for {
		d.mu.Lock()
		if d.used+d.volumeBytes <= d.maxBytes && len(d.index) <= d.maxEntries-d.maxEntries/diskVolumes {
			d.mu.Unlock()
			return nil
		}
		_, v, ok := d.sealed.GetOldest()
		if !ok {
			d.mu.Unlock()
			return errors.New("files that cannot be removed take the disk cache's room")
		}
		d.detach(v)
		d.doomed = append(d.doomed, v)
		d.metrics.evictedBytes.Add(float64(v.size))
		d.mu.Unlock()
		d.removeDoomed()
	}
}

// removeDoomed removes files that nobody finds any more. What cannot be removed goes on taking its room.
func (d *Disk) removeDoomed() {
	d.mu.Lock()
	doomed := slices.Clone(d.doomed)
	d.mu.Unlock()
	for _, v := range doomed {
		v.reading.Lock()
		err := d.files.remove(d.path(v.id))
		v.reading.Unlock()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			d.metrics.failed("remove")
			continue
		}
		d.mu.Lock()
		d.used -= v.size
		d.doomed = slices.DeleteFunc(d.doomed, func(x *volume) bool { return x == v })
		d.mu.Unlock()
	}
}

// scan finds the volumes of an earlier process: the newest ones as far as they fit; the others are removed.
func (d *Disk) scan(ctx context.Context) {
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		d.log.Warn("the disk cache's folder cannot be read", "error", err)
		return
	}
	var found []*volume
	for _, e := range entries {
		id, ok := parseVolumeName(e.Name())
		if !ok || !e.Type().IsRegular() {
			continue
		}
		d.nextID = max(d.nextID, id+1)
		if info, err := e.Info(); err == nil {
			found = append(found, &volume{id: id, size: info.Size()})
		}
	}
	slices.SortFunc(found, func(a, b *volume) int { return int(int64(b.id) - int64(a.id)) })
	var kept []*volume
	extents := 0
	for _, v := range found {
		d.mu.Lock()
		fits := d.used+v.size <= d.maxBytes && v.size <= maxVolumeBytes
		d.used += v.size // until it is removed
		d.mu.Unlock()
		var records []indexed
		if fits && ctx.Err() == nil {
			records = d.readIndex(v.id, v.size, d.maxEntries-extents)
		}
		if len(records) == 0 && ctx.Err() == nil {
			d.mu.Lock()
			d.doomed = append(d.doomed, v)
			d.mu.Unlock()
			continue
		}
		extents += len(records)
		d.adopt(v, records)
		kept = append(kept, v)
	}
	d.mu.Lock()
	for _, v := range slices.Backward(kept) {
		d.sealed.Add(v.id, v) // the oldest first
	}
	used := d.used
	d.mu.Unlock()
	d.removeDoomed()
	if len(found) > 0 {
		d.log.Info("the disk cache was found", "files", len(kept), "extents", extents, "bytes", used)
	}
}

// adopt puts a volume's extents into the index.
func (d *Disk) adopt(v *volume, records []indexed) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range records {
		h := d.hash(r.key)
		r.place.volume = v.id
		d.index[h] = r.place
		v.hashes = append(v.hashes, h)
	}
}

// hold makes the folder and takes its lock, again where somebody removed it. The lock ends with the process.
func (d *Disk) hold() error {
	path := filepath.Join(d.dir, lockName)
	if d.lock != nil {
		mine, err := d.lock.Stat()
		if err != nil {
			return err
		}
		if there, err := os.Stat(path); err == nil && os.SameFile(mine, there) {
			return nil
		}
	}
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	locked, err := tryLock(f)
	if err == nil && !locked {
		err = fmt.Errorf("%w: %s", ErrDiskInUse, d.dir)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	if d.lock != nil {
		err = d.lock.Close()
	}
	d.lock = f
	return err
}
