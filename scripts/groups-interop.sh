#!/usr/bin/env bash
# Other people's clients in consumer groups: each in a group of three members over three agents, behind the load balancer
# and in direct mode. Every member must get its share and every record must be read exactly once per group. java-upgrade is a
# live group of Java consumers whose members go over to group.protocol=consumer one by one, and back.
#   groups-interop.sh [CLIENT …]     default: all of them. TOPOLOGIES (virtual direct), RECORDS (3000) and PORT_SHIFT are
#                                    variables. It starts what `make up` starts, which must not run.
# kafkajs, confluent-kafka and sarama are installed into the tools' folder, outside of the tree.
set -euo pipefail
cd "$(dirname "$0")/.."
clients=("$@")
[ $# -gt 0 ] || clients=(franz-classic franz-consumer sarama kcat confluent-classic confluent-consumer kafkajs java-classic java-consumer java-upgrade)
records=${RECORDS:-3000}
partitions=6
. scripts/up-lib.sh
if alive agent-1; then
  echo "groups-interop.sh: make down first" >&2
  exit 1
fi
here=$PWD/testdata/interop/groups
kafka=$PWD/testdata/interop/kafka/kafka.sh
installed=$tools/groups-clients
kafkajs_version=2.2.4
confluent_version=2.16.1
work=$(mktemp -d)
cleanup() {
  # shellcheck disable=SC2046
  kill $(jobs -p) 2>/dev/null || true
  TOPOLOGY=$topology CLEAN=1 scripts/down.sh >/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT

install_clients() {
  mkdir -p "$installed/bin" "$installed/node"
  local c
  for c in "${clients[@]}"; do
    case $c in
      franz-*) go build -o "$installed/bin/franz" "$here/franz" ;;
      sarama) (cd "$here/sarama" && go build -o "$installed/bin/sarama" .) ;;
      kcat) scripts/tools.sh kcat ;;
      confluent-*)
        [ -x "$installed/venv/bin/python" ] || python3 -m venv "$installed/venv"
        "$installed/venv/bin/pip" install -q --disable-pip-version-check "confluent-kafka==$confluent_version" ;;
      kafkajs)
        [ -d "$installed/node/node_modules/kafkajs" ] ||
          npm install --prefix "$installed/node" --no-audit --no-fund --silent "kafkajs@$kafkajs_version" ;;
      java-*) "$kafka" fetch ;;
      *) echo "groups-interop.sh: unknown client $c" >&2; exit 2 ;;
    esac
  done
}

# member CLIENT TOPIC GROUP: becomes a member, which prints what it reads and leaves on SIGTERM.
member() {
  local b
  b=$(bootstrap)
  case $1 in
    franz-*) exec "$installed/bin/franz" "$b" "$2" "$3" "${1#franz-}" ;;
    sarama) exec "$installed/bin/sarama" "$b" "$2" "$3" ;;
    kcat) exec kcat -b "$b" -X auto.offset.reset=earliest -q -u -G "$3" "$2" ;;
    confluent-*) exec "$installed/venv/bin/python" "$here/confluent.py" "$b" "$2" "$3" "${1#confluent-}" ;;
    kafkajs) NODE_PATH=$installed/node/node_modules exec node "$here/kafkajs.js" "$b" "$2" "$3" ;;
    java-*) exec "$kafka" console-consumer --bootstrap-server "$b" --topic "$2" --group "$3" \
      --consumer-property "group.protocol=${1#java-}" --consumer-property auto.offset.reset=earliest ;;
  esac
}

# show GROUP: "state members lag", members only those that have partitions.
show() {
  "$bin" group describe "$1" -o json --bootstrap "$(bootstrap)" 2>/dev/null | python3 -c '
import json, sys
g = json.load(sys.stdin)
print(g["state"], sum(1 for m in g["members"] if any(m["partitions"].values())), g["lag"])' 2>/dev/null || echo "none 0 0"
}

# until_shows GROUP WANT: waits until show says so, at most a minute, and prints what it says at last.
until_shows() {
  local got
  for _ in $(seq 200); do
    got=$(show "$1")
    [ "$got" != "$2" ] || break
    sleep 0.3
  done
  echo "$got"
}

passed=0 failed=0
check() { # NAME WANT GOT
  if [ "$2" = "$3" ]; then
    passed=$((passed + 1)); echo "ok    $1"
  else
    failed=$((failed + 1)); echo "FAIL  $1: want $2, got $3"
  fi
}

run() { # CLIENT
  local name="$topology $1" topic=groups-$topology-$1 group=group-$topology-$1 pids=() i
  "$bin" topic create "$topic" -p $partitions --bootstrap "$(bootstrap)" >/dev/null
  for i in 1 2 3; do
    (member "$1" "$topic" "$group") >"$work/out.$i" 2>"$work/err.$i" &
    pids+=($!)
  done
  check "$name: three members have partitions" "Stable 3 0" "$(until_shows "$group" "Stable 3 0")"
  seq 1 "$records" | kcat -b "$(bootstrap)" -P -t "$topic" -p -1 -X sticky.partitioning.linger.ms=0
  for _ in $(seq 600); do
    [ "$(cat "$work"/out.[123] | grep -c '^[0-9]')" -lt "$records" ] || break
    sleep 0.1
  done
  sleep 1 # for a record too many
  check "$name: every member read" "3" "$(grep -l '^[0-9]' "$work"/out.[123] | wc -l)"
  kill "${pids[@]}" 2>/dev/null || true
  wait "${pids[@]}" 2>/dev/null || true
  check "$name: $records records exactly once" "$(seq 1 "$records" | sha256sum)" "$(grep -h '^[0-9]' "$work"/out.[123] | sort -n | sha256sum)"
  check "$name: all left, everything committed" "Empty 0 0" "$(until_shows "$group" "Empty 0 0")"
  [ "$failed" = 0 ] || tail -3 "$work"/err.[123]
}

# type_of GROUP: its type, its state and how many members have partitions.
type_of() {
  local type
  type=$("$bin" group list -o json --bootstrap "$(bootstrap)" 2>/dev/null | python3 -c '
import json, sys
print(next(g["type"] for g in json.load(sys.stdin) if g["name"] == sys.argv[1]))' "$1" 2>/dev/null || echo none)
  read -r state members _ < <(show "$1")
  echo "${type,,} $state $members"
}

until_type() { # GROUP WANT
  local got
  for _ in $(seq 200); do
    got=$(type_of "$1")
    [ "$got" != "$2" ] || break
    sleep 0.3
  done
  echo "$got"
}

# upgrade: every step is checked while records go on being produced.
upgrade() {
  local name="$topology java-upgrade" topic=groups-$topology-upgrade group=group-$topology-upgrade pids=() i to producer
  "$bin" topic create "$topic" -p $partitions --bootstrap "$(bootstrap)" >/dev/null
  rm -f "$work"/out.* "$work/stop"
  for i in 1 2 3; do
    (member java-classic "$topic" "$group") >"$work/out.$i" 2>"$work/err.$i" &
    pids[i]=$!
  done
  check "$name: three classic members" "classic Stable 3" "$(until_type "$group" "classic Stable 3")"
  (n=0; until [ -e "$work/stop" ]; do n=$((n + 1)); echo $n; sleep 0.01; done; echo $n >"$work/count") |
    kcat -b "$(bootstrap)" -P -t "$topic" -p -1 -X sticky.partitioning.linger.ms=0 -X queue.buffering.max.ms=20 &
  producer=$!
  for to in consumer classic; do
    for i in 1 2 3; do
      kill "${pids[i]}"
      wait "${pids[i]}" || true
      (member "java-$to" "$topic" "$group") >>"$work/out.$i" 2>>"$work/err.$i" &
      pids[i]=$!
      local want="consumer Stable 3"
      [ "$to$i" != classic3 ] || want="classic Stable 3"
      check "$name: member $i goes to $to" "$want" "$(until_type "$group" "$want")"
    done
  done
  touch "$work/stop"
  wait $producer
  local count
  count=$(cat "$work/count")
  for _ in $(seq 300); do
    [ "$(cat "$work"/out.[123] | grep -c '^[0-9]')" -lt "$count" ] || break
    sleep 0.1
  done
  kill "${pids[@]}" 2>/dev/null || true
  wait "${pids[@]}" 2>/dev/null || true
  check "$name: no record is left out" "$(seq 1 "$count" | sha256sum)" "$(grep -h '^[0-9]' "$work"/out.[123] | sort -nu | sha256sum)"
  check "$name: no record is read twice" "0" "$(grep -h '^[0-9]' "$work"/out.[123] | sort -n | uniq -d | wc -l)"
}

install_clients
scripts/tools.sh kcat
for topology in ${TOPOLOGIES:-virtual direct}; do
  TOPOLOGY=$topology scripts/up.sh >/dev/null
  for c in "${clients[@]}"; do
    if [ "$c" = java-upgrade ]; then upgrade; else run "$c"; fi
  done
  TOPOLOGY=$topology CLEAN=1 scripts/down.sh >/dev/null
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
