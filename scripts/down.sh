#!/usr/bin/env bash
# Stops what up.sh started, the agents first, which drain; CLEAN=1 removes the state too.
#   down.sh [NAME …]      only these
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/up-lib.sh

if [ $# -gt 0 ]; then
  for name in "$@"; do stop "$name"; done
  exit 0
fi
[ -d "$state" ] || { echo "nothing to stop"; exit 0; }
stop haproxy
for n in 1 2 3 4; do end "agent-$n" TERM; done
for n in 1 2 3 4; do stop "agent-$n"; done
stop minio
stop postgres
if [ -n "${CLEAN:-}" ] && [ "$CLEAN" != 0 ]; then
  pgdata=$(cat "$state/postgres.dir" 2>/dev/null || true)
  [ -z "$pgdata" ] || rm -rf "$pgdata"
  rm -rf "$state"
  echo "stopped, and its state removed"
else
  echo "stopped; make up goes on with the same state"
fi
