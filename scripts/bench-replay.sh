#!/usr/bin/env bash
# Replay of level 0 and of merged runs against the bucket's own GETs, one agent on MinIO and SQLite, a fresh agent for each
# measure; then what readers far behind do to producers and to readers at the tail. Prints one line for each.
#   MIB (2048) of records of 1 KiB, PARTITIONS (4), ROUNDS (3), READERS (20), LATENCY_SECONDS (30), KIND=random|text
set -euo pipefail
cd "$(dirname "$0")/.."
mib=${MIB:-2048} partitions=${PARTITIONS:-4} rounds=${ROUNDS:-3} readers=${READERS:-20} seconds=${LATENCY_SECONDS:-30}
random=--random
[ "${KIND:-random}" = random ] || random=
skein=${SKEIN:-$PWD/skein}
tools=${SKEIN_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/skein-tools}
minio=$(command -v minio || echo "$tools/bin/minio")
base=${PORT:-28490}
export AWS_ACCESS_KEY_ID=skein AWS_SECRET_ACCESS_KEY=skeinskein
bucket="s3://bench?region=us-east-1&endpoint=http://127.0.0.1:$base&path_style=true"
bootstrap=127.0.0.1:$((base + 1)) http=127.0.0.1:$((base + 2))
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$work"' EXIT
wait_for() { for _ in $(seq 1800); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done; echo "not ready: $*" >&2; exit 1; }
MINIO_ROOT_USER=skein MINIO_ROOT_PASSWORD=skeinskein MINIO_BROWSER=off "$minio" server --quiet --address 127.0.0.1:$base \
  "$work/minio" >"$work/minio.log" 2>&1 &
wait_for curl -fs http://127.0.0.1:$base/minio/health/ready
agent() { # ROLES
  if [ -n "${pid:-}" ]; then kill "$pid"; wait "$pid" 2>/dev/null || true; fi
  "$skein" agent --listen $bootstrap --advertise $bootstrap --http $http --metadata "sqlite:$work/m.db" --create-bucket \
    --bucket "$bucket" --put-budget 0 --roles "$1" --compaction-interval 1s >>"$work/log" 2>&1 &
  pid=$!
  wait_for curl -fs http://$http/ready
}
metric() { curl -s http://$http/metrics | awk -v m="$1" '$1 == m {s += $2} END {printf "%d", s}'; }
field() { sed -n "s/.*\"$1\": *\([0-9.]*\).*/\1/p" | head -1; }
replay() { # NAME PREFIX FLAG …
  local name=$1 prefix=$2 before
  shift 2
  before=$(metric 'skein_bucket_requests_total{op="get",outcome="ok"}')
  "$skein" bench replay --bootstrap $bootstrap --topic bench --rounds "$rounds" --bucket "$bucket" --prefix "$prefix" "$@" \
    -o json >"$work/replay.json"
  echo "$name: replay $(field median_mib_per_second <"$work/replay.json") MiB/s, raw GET" \
    "$(field raw_get_mib_per_second <"$work/replay.json") MiB/s, ratio $(field replay_to_raw_get <"$work/replay.json")," \
    "GETs per GiB $((($(metric 'skein_bucket_requests_total{op="get",outcome="ok"}') - before) * 1024 / (mib * rounds)))"
}
latency() { # NAME
  "$skein" bench latency --bootstrap $bootstrap --topic tail --rate 100 --record-bytes 1000 --duration "${seconds}s" -o json \
    | tr -d ' \n' | sed -E 's/.*"produce":\{([^}]*)\}.*"end_to_end":\{([^}]*)\}.*/\1 end to end \2/; s/"//g' | sed "s/^/$1: produce /"
  echo
}

agent proxy
seconds_left=$((mib * 1024 / 60000 + 1))
"$skein" bench produce --bootstrap $bootstrap --topic bench --partitions "$partitions" --record-bytes 1024 --producers 2 \
  --duration "${seconds_left}s" --rate 60000 $random -o json >"$work/produce.json"
mib=$(($(field records <"$work/produce.json") / 1024))
echo "written: $mib MiB over $partitions partitions"
agent proxy
replay "level 0, 1 consumer" seg/ --consumers 1
agent proxy
replay "level 0, $partitions consumers" seg/ --consumers "$partitions"
agent proxy,compactor
merged() { [ "$(metric 'skein_compactor_bytes_total{direction="written",job="merge"}')" -gt 0 ] && [ "$(metric skein_compactor_unmerged_rows)" = 0 ]; }
wait_for merged
sleep 5
agent proxy
replay "runs, 1 consumer" run/ --consumers 1
agent proxy
replay "runs, $partitions consumers" run/ --consumers "$partitions"
[ "$readers" -gt 0 ] || exit 0
latency "alone"
# At the lowest priority: elsewhere readers do not take the agents' processors.
nice -n 19 "$skein" bench replay --bootstrap $bootstrap --topic bench --rounds 100 --readers "$readers" >/dev/null 2>&1 &
behind=$!
sleep 3
latency "beside $readers readers far behind"
kill $behind
wait $behind 2>/dev/null || true
latency "alone again"
