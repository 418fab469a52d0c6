#!/usr/bin/env bash
# The docker-compose topology as local processes on loopback: Postgres, MinIO, three agents, HAProxy. Safe to run twice.
#   up.sh                 start what does not run, return when all are ready
#   up.sh start NAME …    start these (agent-1 … agent-4, postgres, minio, haproxy) and wait until they are ready
# TOPOLOGY=virtual (default): clients are told 127.0.0.1:19092, the load balancer. TOPOLOGY=direct: every agent is a
# broker, 127.0.0.1:19093 to 19095, in two zones. AGENT_FLAGS are more flags for the agents, BIN is the binary, BIN_1 to
# BIN_4 that of one agent, METADATA_URL another way to the database. LB_PROXY=v2: the load balancer speaks the PROXY protocol
# and the agents expect it.
# State, logs and pid files are under .skein-up/, and metadata.url, bucket.url, env (the bucket's credential).
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/up-lib.sh

if [ "${1:-}" = start ]; then
  shift
  for name in "$@"; do start "$name"; done
  exit 0
fi
running=$(cat "$state/topology" 2>/dev/null || true)
if [ -n "$running" ] && [ "$running" != "$topology" ] && alive agent-1; then
  echo "up.sh: it runs with TOPOLOGY=$running; make down first" >&2
  exit 1
fi
scripts/tools.sh postgres minio haproxy
mkdir -p "$state"
echo "$topology" >"$state/topology"
for name in postgres minio; do start "$name"; done
# One after the other: the first migrates the schema and makes the bucket.
for n in 1 2 3; do start "agent-$n"; done
start haproxy
echo "ready: bootstrap $(bootstrap)"
echo "state, logs and pid files: $state; stop with: make down"
