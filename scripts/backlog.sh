#!/usr/bin/env bash
# The compactor stopped under load, then started: what level 0 grows to, how producers fare before, in and after the write
# stall, how long the backlog takes to drain while they go on. Runs on a `make up` of its own, and ends with fsck.
#   backlog.sh            WITHOUT (420) seconds without a compactor, then one, for at most DRAIN (300) seconds
# RATE records of 1 KiB per second over PARTITIONS partitions, LINGER, MAX_UNMERGED: what makes the backlog.
set -euo pipefail
cd "$(dirname "$0")/.."
linger=${LINGER:-40ms} limit=${MAX_UNMERGED:-20000} partitions=${PARTITIONS:-256} rate=${RATE:-3000}
without=${WITHOUT:-420} drain=${DRAIN:-300} step=${STEP:-30}
export AGENT_FLAGS="--roles=proxy --linger=$linger --put-budget=0 --commit-budget=0 --max-unmerged=$limit"
. scripts/up-lib.sh
alive agent-1 && { echo "backlog.sh: make down first" >&2; exit 1; }
compactor=
finish() {
  [ -n "$compactor" ] && kill "$compactor" 2>/dev/null && wait "$compactor" || true
  CLEAN=1 scripts/down.sh >/dev/null
}
trap finish EXIT
scripts/up.sh >/dev/null
. "$state/env"
urls=(--metadata "$(cat "$state/metadata.url")" --bucket "$(cat "$state/bucket.url")")
compactor_http=127.0.0.1:$((lb_http_port + 9))
"$bin" topic create backlog -p "$partitions" --bootstrap "$(bootstrap)" >/dev/null

# value URL METRIC: the sum over labels, as a whole number.
value() { curl -fsS "$1/metrics" 2>/dev/null | awk -v m="$2" '$1 == m || index($1, m "{") == 1 {n += $2} END {printf "%.0f", n}'; }
worst() { for n in 1 2 3; do value "http://127.0.0.1:$(http_port agent-$n)" skein_unmerged_rows_worst_block; echo; done | sort -n | tail -1; }
stalled() { for n in 1 2 3; do value "http://127.0.0.1:$(http_port agent-$n)" skein_commit_stall_seconds_total; echo; done | awk '{n += $1} END {print n}'; }
database() { "$(postgres_bin)/psql" -h 127.0.0.1 -p $postgres_port -U skein -d skein -qtAXc "SELECT pg_database_size(current_database()) / 1048576"; }

printf '%6s  %9s %8s %8s %7s  %10s %8s %9s %s\n' second records/s p50_ms p99_ms errors worst_rows stall_s db_MiB compactor
began=$SECONDS
line() { # one step of load, then a line
  local out
  out=$("$bin" bench produce --bootstrap "$(bootstrap)" --topic backlog --partitions "$partitions" --record-bytes 1024 \
    --producers 6 --rate "$rate" --duration "${step}s" -o json)
  printf '%6d  %9.0f %8.0f %8.0f %7d  %10d %8d %9s %s\n' $((SECONDS - began)) \
    "$(jq -r .records_per_second <<<"$out")" "$(jq -r .p50_ms <<<"$out")" "$(jq -r .p99_ms <<<"$out")" "$(jq -r .errors <<<"$out")" \
    "$(worst)" "$(stalled)" "$(database)" "$1"
}
while [ $((SECONDS - began)) -lt "$without" ]; do line none; done
"$bin" fsck --shallow "${urls[@]}"
"$bin" agent --roles compactor --http "$compactor_http" --max-unmerged "$limit" "${urls[@]}" 2>"$state/compactor.log" &
compactor=$!
started=$SECONDS
while [ $((SECONDS - started)) -lt "$drain" ]; do
  line "$(value "http://$compactor_http" skein_compactor_unmerged_rows) rows left, oldest $(value "http://$compactor_http" skein_compactor_unmerged_age_seconds) s"
  [ "$(worst)" -lt $((limit / 10)) ] && break
done
echo "drained to $(worst) rows in the worst block after $((SECONDS - started)) s of load with a compactor"
for d in in read inline written; do
  echo "$d: $(($(curl -fsS "http://$compactor_http/metrics" | awk -v d="direction=\"$d\"" '/^skein_compactor_bytes_total/ && index($1, d) {n += $2} END {printf "%.0f", n}') >> 20)) MiB"
done
echo "memory of jobs now $(value "http://$compactor_http" skein_compactor_memory_bytes), peak RSS of the compactor: $(awk '/VmHWM/{print int($2 / 1024)}' "/proc/$compactor/status") MiB"
"$bin" fsck "${urls[@]}"
