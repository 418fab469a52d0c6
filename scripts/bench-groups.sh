#!/usr/bin/env bash
# A thousand members of fifty groups heartbeat through the three agents of `make up`, which must run; then ten thousand
# partitions are committed at once. What the members cost the database is the difference to what the agents cost it idle.
#   bench-groups.sh [FLAG …]     flags of `skein bench groups`; SECONDS_LONG (30) is how long each side is counted
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/up-lib.sh
long=${SECONDS_LONG:-30}
sql() { "$(postgres_bin)/psql" -h 127.0.0.1 -p "$postgres_port" -U skein -d skein -qtAX -c "$1"; }
# statements SECONDS: how many statements Postgres ran in that time, by its log: its counters of transactions have those of
# autovacuum too.
statements() {
  local from
  sql "ALTER SYSTEM SET log_min_duration_statement = 0"
  sql "SELECT pg_reload_conf()" >/dev/null
  sleep 1
  from=$(stat -Lc %s "$state/postgres.log")
  sleep "$1"
  tail -c "+$from" "$state/postgres.log" | grep -acE 'LOG:  duration: .* (execute|statement)[^:]*:'
  sql "ALTER SYSTEM RESET log_min_duration_statement"
  sql "SELECT pg_reload_conf()" >/dev/null
}
# counter NAME: a counter of all agents.
counter() {
  local n
  for n in 1 2 3; do curl -fs "http://127.0.0.1:$(http_port "agent-$n")/metrics"; done | awk -v m="$1" 'index($1, m) == 1 { n += $2 } END { print n + 0 }'
}

idle=$(statements "$long")
# The members heartbeat when all of them have joined; a commit of offsets follows.
beats=$(counter 'skein_group_heartbeats_total{from="memory"}')
"$bin" bench groups --bootstrap "$(bootstrap)" --duration $((long + 20))s -o json "$@" >"$state/bench-groups.json" &
pid=$!
until [ "$(counter 'skein_group_heartbeats_total{from="memory"}')" -gt "$beats" ]; do
  kill -0 $pid || exit 1
  sleep 1
done
sleep 5
memory=$(counter 'skein_group_heartbeats_total{from="memory"}') asked=$(counter 'skein_group_heartbeats_total{from="database"}')
busy=$(statements "$long")
memory=$(($(counter 'skein_group_heartbeats_total{from="memory"}') - memory)) asked=$(($(counter 'skein_group_heartbeats_total{from="database"}') - asked))
wait $pid
cat "$state/bench-groups.json"
awk -v i="$idle" -v b="$busy" -v t="$long" -v m="$memory" -v a="$asked" 'BEGIN {
  printf "statements a second: idle %.1f, with members %.1f; of the heartbeats %d were answered from memory, %d after asking the database\n", i / t, b / t, m, a }'
