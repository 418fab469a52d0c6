#!/usr/bin/env bash
# A thousand members of fifty groups heartbeat through the three agents of `make up`, which must run; then ten thousand
# partitions are committed at once. What the members cost the database is the difference to what the agents cost it idle.
#   bench-groups.sh [FLAG …]     flags of `skein bench groups`; SECONDS_LONG (30) is how long each side is counted
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/up-lib.sh
long=${SECONDS_LONG:-30}
sql() { "$(postgres_bin)/psql" -h 127.0.0.1 -p "$postgres_port" -U skein -d skein -qtAX -c "$1"; }
# Every statement outside of a transaction is one, so this counts statements and transactions. The numbers of a session come
# in late: the database is asked again when they have.
transactions() {
  sleep 2
  sql "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = 'skein'"
}
# changes: transactions that changed a group, and heartbeats answered after asking the database, of all agents.
counter() {
  local n
  for n in 1 2 3; do curl -fs "http://127.0.0.1:$(http_port "agent-$n")/metrics"; done | awk -v m="$1" 'index($1, m) == 1 { n += $2 } END { print n + 0 }'
}

before=$(transactions)
began=$(date +%s)
sleep "$long"
idle=$(transactions)
idle_seconds=$(($(date +%s) - began))
"$bin" bench groups --bootstrap "$(bootstrap)" --duration $((long + 20))s -o json "$@" >"$state/bench-groups.json" &
pid=$!
# Joined: no group has changed for a while.
last=-1
until [ "$last" = "$(counter skein_group_events_total)" ] && [ "$last" != 0 ]; do
  last=$(counter skein_group_events_total)
  sleep 5
done
start=$(transactions) memory=$(counter 'skein_group_heartbeats_total{from="memory"}') asked=$(counter 'skein_group_heartbeats_total{from="database"}')
began=$(date +%s)
sleep $((long / 2))
end=$(transactions) memory=$(($(counter 'skein_group_heartbeats_total{from="memory"}') - memory)) asked=$(($(counter 'skein_group_heartbeats_total{from="database"}') - asked))
busy_seconds=$(($(date +%s) - began))
wait $pid
cat "$state/bench-groups.json"
awk -v i=$((idle - before)) -v it=$idle_seconds -v b=$((end - start)) -v bt=$busy_seconds -v m="$memory" -v a="$asked" 'BEGIN {
  printf "statements a second: idle %.1f, with members %.1f, for the members %.1f; heartbeats a second: %.0f from memory, %.1f after asking\n",
    i / it, b / bt, b / bt - i / it, m / bt, a / bt }'
