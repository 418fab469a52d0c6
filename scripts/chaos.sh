#!/usr/bin/env bash
# Kills, freezes, drains and adds agents, and stops and freezes the stores, under steady idempotent load; then counts what
# was lost, doubled or out of order, and lets fsck compare the database with the bucket. Runs on `make up`, which it starts
# when it must, and stops then.
#   chaos.sh [FLAG …]     flags of internal/chaos; SCENARIO (all), CLIENTS (franz,java,python,kcat), TOPOLOGY, and the
#                         variables of up.sh
# SCENARIO=groups hurts agents and Postgres under 20 consumer groups and counts rebalances and what they missed.
# CLOCKS=wrong: the clock of agent-1 is two hours ahead, that of agent-2 two hours behind (testdata/chaos/clock.sh).
# LOAD=txn: transactions instead, one of every CUT (100) commits losing its connection to the database.
# PYTHON names a Python that has confluent-kafka; without it one is made beside the tools.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/up-lib.sh
scripts/tools.sh kcat
testdata/interop/kafka/kafka.sh fetch
clients=${CLIENTS:-franz,java,python,kcat}
if [[ ,$clients, = *,python,* && -z ${PYTHON:-} ]]; then
  PYTHON=$tools/python/bin/python
  "$PYTHON" -c 'import confluent_kafka' 2>/dev/null || {
    python3 -m venv "$tools/python"
    "$tools/python/bin/pip" -q install 'confluent-kafka==2.16.*'
  }
fi
mkdir -p "$state/bin"
go build -o "$state/bin/chaos" ./internal/chaos
if [ "${CLOCKS:-}" = wrong ]; then
  testdata/chaos/clock.sh 7200 "$state/bin/skein-ahead"
  testdata/chaos/clock.sh -7200 "$state/bin/skein-behind"
  export BIN_1=$state/bin/skein-ahead BIN_2=$state/bin/skein-behind
fi
if ! alive agent-1; then
  trap 'CLEAN=1 scripts/down.sh' EXIT
fi
scripts/up.sh
for n in 1 2 3; do # by the logs' own clocks
  echo "agent-$n: $(($(date -d "$(sed -n 's/^time=\(\S*\) .*msg=starting .*/\1/p' "$state/agent-$n.log" | tail -1)" +%s) - $(stat -c %Y "$state/agent-$n.yaml"))) s ahead of this machine's clock"
done
[ "${LOAD:-records}" != txn ] || set -- -load txn -cut "${CUT:-100}" "$@"
failed=0
"$state/bin/chaos" -bootstrap "$(bootstrap)" -scenario "${SCENARIO:-all}" -clients "$clients" -python "${PYTHON:-python3}" "$@" || failed=1
. "$state/env"
"$bin" fsck --metadata "$(cat "$state/metadata.url")" --bucket "$(cat "$state/bucket.url")" || failed=1
exit $failed
