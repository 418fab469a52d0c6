#!/usr/bin/env bash
# A day of log-like data in minutes, on three agents (scripts/up.sh): 1,000 partitions, small flushes, first without a
# compactor, then with. Prints objects, bytes, database rows per GiB, PUTs and GETs before and after, and write
# amplification; ends with fsck.
#   SECONDS_OF_LOAD (120), RATE (6000 records of 1 KiB a second), PARTITIONS (1000), LINGER (100ms), PORT_SHIFT
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/up-lib.sh
seconds=${SECONDS_OF_LOAD:-120} rate=${RATE:-6000} partitions=${PARTITIONS:-1000} linger=${LINGER:-100ms}
trap 'CLEAN=1 scripts/down.sh >/dev/null 2>&1 || true' EXIT
put_get() { # OP: of all agents since they started
  local n=0 port
  for i in 1 2 3; do
    port=$(http_port "agent-$i")
    n=$((n + $(curl -s "http://127.0.0.1:$port/metrics" | awk -v m="skein_bucket_requests_total{op=\"$1\",outcome=\"ok\"}" '$1 == m {printf "%d", $2}')))
  done
  echo $n
}
sum() { # METRIC, as a pattern
  for i in 1 2 3; do curl -s "http://127.0.0.1:$(http_port "agent-$i")/metrics"; done | grep -E "^$1 " | awk '{s += $2} END {printf "%d", s}'
}
rows() { # TABLE …
  local sql n=0
  sql="$(postgres_bin)/psql -h 127.0.0.1 -p $postgres_port -U skein -d skein -qtAX"
  for t in "$@"; do n=$((n + $($sql -c "SELECT count(*) FROM $t"))); done
  echo $n
}
stored() { (cd "$state/minio" && find . -path '*/seg/*' -name xl.meta -o -path '*/run/*' -name xl.meta) | wc -l; }
bytes() { (cd "$state/minio" && du -sb --apparent-size . | cut -f1); }
restart() { # FLAGS: all three agents
  for i in 1 2 3; do stop "agent-$i"; done
  AGENT_FLAGS=$1 scripts/up.sh start agent-1 agent-2 agent-3
}
report() { # WHEN
  local level0 runs other
  level0=$(rows level0) runs=$(rows runs) other=$(rows objects inline checkpoints)
  echo "$1: objects $(stored), bytes in the bucket's folder $(bytes), rows: level0 $level0, runs $runs, objects+inline+checkpoints $other," \
    "per GiB $(((level0 + runs + other) * 1048576 / (kib + 1))), PUT $(put_get put), GET $(put_get get), DELETE $(put_get delete)"
}

AGENT_FLAGS="--roles proxy --linger $linger --put-budget 0 --inline-max-bytes 16KiB" scripts/up.sh >/dev/null
"$bin" bench produce --bootstrap "$(bootstrap)" --topic day --partitions "$partitions" --record-bytes 1024 --producers 6 \
  --duration "${seconds}s" --rate "$rate" -o json >"$state/produce.json"
kib=$(sed -n 's/.*"records": *\([0-9]*\).*/\1/p' "$state/produce.json" | head -1)
echo "written: $kib records of 1 KiB over $partitions partitions in $seconds s"
report before
restart "--roles proxy,compactor --compaction-interval 1s --gc-grace 1s"
start=$(date +%s)
merged() { [ "$(sum skein_compactor_unmerged_rows)" = 0 ] && [ "$(sum 'skein_compactor_bytes_total\{direction="written",job="merge"\}')" -gt 0 ]; }
for _ in $(seq 600); do merged && break; sleep 0.5; done
echo "merged after $(($(date +%s) - start)) s"
last=
for _ in $(seq 60); do # until nothing is rewritten or deleted any more
  now="$(sum 'skein_compactor_bytes_total\{direction="written",job=".*"\}') $(stored)"
  [ "$now" = "$last" ] && break
  last=$now
  sleep 8
done
report after
in=$(sum 'skein_compactor_bytes_total\{direction="in",job="merge"\}')
echo "compactor: raw bytes merged $in, read $(sum 'skein_compactor_bytes_total\{direction="read",job=".*"\}')," \
  "written by merge $(sum 'skein_compactor_bytes_total\{direction="written",job="merge"\}')," \
  "by merging again $(sum 'skein_compactor_bytes_total\{direction="written",job="remerge"\}')"
for i in 1 2 3; do stop "agent-$i"; done
(. "$state/env" && "$bin" fsck --metadata "$(cat "$state/metadata.url")" --bucket "$(cat "$state/bucket.url")") | tail -3
