#!/usr/bin/env bash
# The procedure of docs/OPERATIONS.md, Backup and restore, done for real on `make up`: a base backup of Postgres is restored
# beside a bucket that went on. Shows that what the backup knew is read back whole, that garbage collection stays halted
# until `skein fsck --repair` releases it, and what happens when gc-grace was shorter than the backup is old.
#   dbrestore.sh            starts the topology, with its own state, and stops it at its end (about three minutes)
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/up-lib.sh
[ ! -e "$state" ] || { echo "dbrestore.sh: $state is there; make down CLEAN=1 first" >&2; exit 1; }
grace=40
export AGENT_FLAGS="--inline-max-bytes 0 --compaction-interval 1s --gc-grace ${grace}s"
trap 'CLEAN=1 scripts/down.sh >/dev/null' EXIT
say() { printf '%(%H:%M:%S)T  %s\n' -1 "$*"; }
fail() { say "FAIL  $*"; exit 1; }
wait_for() { # SECONDS WHAT CMD …
  local seconds=$1 what=$2
  shift 2
  for _ in $(seq $((seconds * 5))); do
    "$@" && return 0
    sleep 0.2
  done
  fail "$what"
}
metric() { # NAME: the sum over the agents
  for n in 1 2 3; do curl -fs "http://127.0.0.1:$(http_port agent-$n)/metrics"; done |
    awk -v name="$1" '$1 == name { s += $2 } END { print s + 0 }'
}
above() { [ "$(metric "$1")" -gt "$2" ]; }
at_most() { [ "$(metric "$1")" -le "$2" ]; }
lines() { seq -f "$1-%06g" "$2"; }
write() { lines "$1" 20000 | "$bin" produce restored --bootstrap "$(bootstrap)"; }
contents() { "$bin" consume restored --exit-at-end --bootstrap "$(bootstrap)" | sort | sha256sum; }
fsck() { "$bin" fsck --metadata "$(cat "$state/metadata.url")" --bucket "$(cat "$state/bucket.url")" "$@"; }
sql() { "$(postgres_bin)/psql" -qtAX -v ON_ERROR_STOP=1 "$(cat "$state/metadata.url")" -c "$1"; }
agents() { for n in 1 2 3; do "$1" "agent-$n" "${@:2}"; done; }
deleted='skein_compactor_objects_total{what="deleted"}'

restore() { # the procedure: agents stopped, the data folder exchanged, Postgres started, agents started
  agents stop >/dev/null
  stop postgres
  as_postgres rm -rf "$pg/data"
  as_postgres cp -a "$pg/backup" "$pg/data"
  start postgres
  agents start
  start haproxy # it runs: until it has seen an agent
}

scripts/up.sh >/dev/null
. "$state/env"
pg=$(cat "$state/postgres.dir")
"$bin" topic create restored -p 4 --bootstrap "$(bootstrap)"
write before
wait_for 60 "nothing was merged" above 'skein_compactor_objects_total{what="condemned"}' 0
say "base backup: 20,000 records, merged; the merged flushes are garbage and not deleted yet"
(cd / && as_postgres "$(postgres_bin)/pg_basebackup" -h 127.0.0.1 -p "$postgres_port" -U skein -D "$pg/backup" -X stream -c fast)
taken=$SECONDS
named=$(sql "SELECT string_agg(key, ',') FROM objects WHERE state = 1")
write after
wait_for $((grace + 60)) "nothing was deleted" above "$deleted" 0
say "the bucket went on: 20,000 records more, $(metric "$deleted") objects deleted, $((SECONDS - taken)) s after the backup"

restore
say "restored, agents started"
[ "$(contents)" = "$(lines before 20000 | sort | sha256sum)" ] || fail "what the backup knew is not what is read"
say "ok    exactly the 20,000 records that the backup knew are read"
wait_for 60 "garbage collection is not halted" above skein_compactor_gc_halted 0
! fsck >"$state/fsck" || fail "fsck finds nothing wrong"
grep -q '^halted' "$state/fsck" || { cat "$state/fsck"; fail "fsck does not say that garbage collection is halted"; }
say "ok    garbage collection is halted: $(sed -n 's/^halted  *//p' "$state/fsck" | head -1)"
at_most "$deleted" 0 || fail "objects were deleted while halted"
write again
[ "$(contents)" = "$( (lines before 20000; lines again 20000) | sort | sha256sum)" ] || fail "what is written now is not what is read"
say "ok    producers and consumers go on meanwhile"
fsck --repair >"$state/fsck" || { cat "$state/fsck"; fail "fsck --repair"; }
say "ok    fsck --repair: $(grep '^halted' "$state/fsck" | tr -s ' ')"
wait_for $((grace + 60)) "garbage collection does not go on" above "$deleted" 0
wait_for 60 "agents still show that it is halted" at_most skein_compactor_gc_halted 0
[ "$(contents)" = "$( (lines before 20000; lines again 20000) | sort | sha256sum)" ] || fail "records are gone after garbage collection"
fsck >"$state/fsck" || { cat "$state/fsck"; fail "fsck after that"; }
say "ok    garbage collection goes on, fsck: $(tail -1 "$state/fsck")"

expired() { [ "$(sql "SELECT count(*) FROM objects WHERE key = ANY ('{$named}') AND NOT (state = 3 AND refs < 0)")" = 0 ]; }
"$bin" topic delete restored --bootstrap "$(bootstrap)"
wait_for $((grace * 2 + 120)) "the objects of the deleted topic stay" expired
say "the topic was deleted, and gc-grace after it its objects; now the same backup, $((SECONDS - taken)) s old: too old for gc-grace ${grace}s"
restore
wait_for 60 "garbage collection is not halted" above skein_compactor_gc_halted 0
! fsck --repair >"$state/fsck" || fail "fsck says that all is well"
grep -q '^missing' "$state/fsck" || { cat "$state/fsck"; fail "fsck does not name what is missing"; }
say "ok    too old: fsck names $(grep -c '^missing' "$state/fsck") missing objects, and of garbage collection: $(sed -n 's/^halted  *//p' "$state/fsck" | tr -s ' ' | sed 's/.*; //')"
