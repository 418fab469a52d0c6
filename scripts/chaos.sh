#!/usr/bin/env bash
# Kills, freezes, drains and adds agents, and stops and freezes the stores, under steady idempotent load; then counts what
# was lost, doubled or out of order. Runs on `make up`, which it starts when it must, and stops then.
#   chaos.sh [FLAG …]     flags of internal/chaos; SCENARIO (all), CLIENTS (franz,java,kcat) and TOPOLOGY are variables.
# CLIENTS may name python too: PYTHON must then have confluent-kafka.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/up-lib.sh
scripts/tools.sh kcat
testdata/interop/kafka/kafka.sh fetch
mkdir -p "$state/bin"
go build -o "$state/bin/chaos" ./internal/chaos
if ! alive agent-1; then
  trap 'CLEAN=1 scripts/down.sh' EXIT
fi
scripts/up.sh
"$state/bin/chaos" -bootstrap "$(bootstrap)" -scenario "${SCENARIO:-all}" -clients "${CLIENTS:-franz,java,kcat}" \
  -python "${PYTHON:-python3}" "$@"
