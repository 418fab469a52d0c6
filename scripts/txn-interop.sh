#!/usr/bin/env bash
# Other people's transactional clients against `make up`: Kafka's Java producer with KIP-890 and with the original protocol,
# librdkafka's (from Python), franz-go's transactional sessions, `kafka-transactions`, and Kafka Streams' word count with
# exactly_once_v2 while the application is restarted and killed and the agents are killed: everything is counted.
#   txn-interop.sh [TOPOLOGY …]     default: virtual direct
# It starts the topology where none runs, and stops what it started. What it needs comes from Maven and PyPI. PARTS (java
# python franz tools streams) chooses, SECONDS_FED (60) is how long the word count is fed.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- virtual direct
PARTS=${PARTS:-java python franz tools streams}
fed=${SECONDS_FED:-60}
here=testdata/interop/txn
work=$(mktemp -d)
results=$work/results
touch "$results"
pids=()
started=

cleanup() {
  [ ${#pids[@]} = 0 ] || kill -9 "${pids[@]}" 2>/dev/null || true
  [ -z "$started" ] || CLEAN=1 scripts/down.sh >/dev/null
  rm -rf "$work"
}
trap cleanup EXIT

# say LINE: a result, "ok …" or "FAIL …".
say() { echo "$1" | tee -a "$results"; }
check() { # NAME WANT GOT
  if [ "$2" = "$3" ]; then say "ok    $1"; else say "FAIL  $1: want $(head -c 200 <<<"$2"), got $(head -c 300 <<<"$3")"; fi
}
# run NAME CMD …: a program that prints results; one that ends badly is one too.
run() {
  local name=$1
  shift
  "$@" 2>"$work/err" | tee -a "$results" || say "FAIL  $name ended badly: $(tail -3 "$work/err" | tr '\n' ' ')"
}

. scripts/up-lib.sh
fetch() { # NAME: the jars of NAME.pom.xml
  local libs=$tools/txn-$1/libs
  if [ ! -e "$libs/.complete" ]; then
    mvn -q -B -f "$here/$1.pom.xml" dependency:copy-dependencies -DoutputDirectory="$libs" -DincludeScope=runtime >&2
    touch "$libs/.complete"
  fi
  mkdir -p "$work/$1"
}
jvm=(-Xmx384m -XX:+UseSerialGC -XX:TieredStopAtLevel=1)
# java_with NAME CLASS ARG …: takes the place of the shell that it runs in, so that its pid is Java's.
java_with() {
  local v=$1
  shift
  exec java "${jvm[@]}" -cp "$work/$v:$tools/txn-$v/libs/*" "$@"
}
fetch kip890
fetch original
javac -nowarn -d "$work/original" -cp "$tools/txn-original/libs/*" $here/Txn.java
javac -nowarn -d "$work/kip890" -cp "$tools/txn-kip890/libs/*" $here/Txn.java $here/WordCount.java $here/WordCheck.java
python=$tools/python/bin/python
if ! "$python" -c 'import confluent_kafka' 2>/dev/null; then
  python3 -m venv "$tools/python"
  "$tools/python/bin/pip" -q install 'confluent-kafka==2.16.*'
fi
kafka=testdata/interop/kafka/kafka.sh
$kafka fetch
go build -o "$work/chaos" ./internal/chaos

# killed PID: kill -9, without the shell's notice.
killed() {
  kill -9 "$1"
  { wait "$1" || true; } 2>/dev/null
}
end_opener() { killed $opener; }

# open_transaction ID TOPIC: in partition 0, by a producer that runs until end_opener.
open_transaction() {
  "$python" $here/txn.py "$bootstrap" "$1" open "$2" >"$work/open" 2>&1 &
  opener=$!
  pids+=($opener)
  for _ in $(seq 300); do
    grep -q '^open' "$work/open" && return 0
    sleep 0.1
  done
  say "FAIL  open a transaction: $(tail -2 "$work/open")"
}

# column N ROW-PATTERN: of the tools' tab-separated tables.
column() { awk -F '\t' -v n="$1" -v p="$2" '$0 ~ p { gsub(/ /, "", $n); print $n }'; }

kafka_transactions() {
  local topic=$id-hang psql start broker=0
  [ "$topology" = virtual ] || broker=1
  txns() { $kafka transactions --bootstrap-server "$bootstrap" "$@" 2>&1; }
  $kafka topics --bootstrap-server "$bootstrap" --create --topic "$topic" --partitions 1 >/dev/null
  open_transaction "$id-open" "$topic"
  check "kafka-transactions list" "Ongoing" "$(txns list | column 4 "^$id-open ")"
  check "kafka-transactions describe" "Ongoing $topic-0" \
    "$(txns describe --transactional-id "$id-open" >"$work/t"; echo "$(column 5 "$id-open" <"$work/t") $(column 9 "$id-open" <"$work/t")")"
  check "kafka-transactions describe-producers" "0" \
    "$(txns describe-producers --topic "$topic" --partition 0 | tail -1 | cut -f 6 | tr -d ' ')"
  check "kafka-transactions find-hanging: one that its coordinator knows does not hang" "" \
    "$(txns find-hanging --topic "$topic" --max-transaction-timeout 0 | tail -n +2)"
  txns abort --topic "$topic" --partition 0 --start-offset 0
  check "kafka-transactions abort of an ongoing one" "CompleteAbort" \
    "$(txns describe --transactional-id "$id-open" | column 5 "$id-open")"
  end_opener
  # One that hangs does not come about by itself here: its transactional id is taken away under it.
  open_transaction "$id-hang" "$topic"
  end_opener
  psql="$(postgres_bin)/psql -h 127.0.0.1 -p $postgres_port -U skein -d skein -qtAX"
  $psql -c "WITH t AS (DELETE FROM transactions WHERE id = '$id-hang' RETURNING producer)
    DELETE FROM txn_open o USING t WHERE o.producer = t.producer"
  check "kafka-transactions find-hanging --topic" "$topic" \
    "$(txns find-hanging --topic "$topic" --max-transaction-timeout 0 | column 1 "^$topic")"
  check "kafka-transactions find-hanging --broker-id" "$topic" \
    "$(txns find-hanging --broker-id $broker --max-transaction-timeout 0 | column 1 "^$topic")"
  start=$(txns find-hanging --topic "$topic" --max-transaction-timeout 0 | column 6 "^$topic")
  txns abort --topic "$topic" --partition 0 --start-offset "$start"
  check "kafka-transactions abort of a hanging one" "" "$(txns find-hanging --topic "$topic" --max-transaction-timeout 0 | tail -n +2)"
  check "nothing is open" "None" \
    "$(txns describe-producers --topic "$topic" --partition 0 | tail -n +2 | cut -f 6 | tr -d ' ' | sort -u)"
  echo behind | kcat -b "$bootstrap" -P -t "$topic" -p 0
  check "a read_committed reader reads on" "behind" \
    "$(kcat -b "$bootstrap" -C -t "$topic" -p 0 -o beginning -X isolation.level=read_committed -e -q)"
}

# app N: starts an instance of the word count.
app() {
  java_with kip890 WordCount "$bootstrap" "$id-words" "$id-lines" "$id-counts" "$work/state-$1" >>"$work/app-$1" 2>&1 &
  apps[$1]=$!
  pids+=($!)
}

# runs N TIMES: waits until instance N of the word count has come to run so many times.
runs() {
  for _ in $(seq 1200); do
    [ "$(grep -c -- '-> RUNNING' "$work/app-$1")" -lt "$2" ] || return 0
    sleep 0.1
  done
  say "FAIL  instance $1 of the word count does not run: $(tail -2 "$work/app-$1")"
}

word_count() {
  local apps=() agent
  java_with kip890 WordCheck feed "$bootstrap" "$id-lines" "$id-counts" $((fed * 50)) "$fed" >"$work/feed" 2>&1 &
  local feeder=$!
  pids+=($feeder)
  until grep -qs 'topics made' "$work/feed"; do kill -0 $feeder && sleep 0.1; done
  app 1
  app 2
  runs 1 1
  runs 2 1
  sleep $((fed / 10))
  kill "${apps[1]}" # leaves, and comes back
  wait "${apps[1]}" 2>/dev/null || true
  app 1
  for agent in agent-1 agent-2 agent-3; do
    sleep $((fed / 10))
    kill -9 "$(pid_of $agent)"
    sleep 2
    start $agent
  done
  killed "${apps[2]}" # its transaction is open
  sleep 1
  app 2
  wait $feeder || say "FAIL  the word count's input: $(tail -1 "$work/feed")"
  kill -9 "$(pid_of agent-1)"
  sleep 2
  start agent-1
  runs 1 2
  runs 2 2
  run "word count" java_with kip890 WordCheck check "$bootstrap" "$id-lines" "$id-counts" \
    "Kafka Streams exactly_once_v2, $topology, application restarted and killed, agents killed" 180
  kill "${apps[@]}" 2>/dev/null || true
  wait "${apps[@]}" 2>/dev/null || true
}

for topology; do
  export TOPOLOGY=$topology
  . scripts/up-lib.sh
  running=$(cat "$state/topology" 2>/dev/null || true)
  if alive agent-1 && [ "$running" != "$topology" ]; then
    echo "txn-interop.sh: it runs with TOPOLOGY=$running; make down first" >&2
    exit 1
  fi
  alive agent-1 || started=1
  scripts/up.sh >/dev/null
  bootstrap=$(bootstrap)
  id=txn-$topology-$$
  echo "== $topology: $bootstrap"
  for part in $PARTS; do
    case $part in
      java)
        run "Java, original" java_with original Txn "$bootstrap" "$id" original
        run "Java, KIP-890" java_with kip890 Txn "$bootstrap" "$id" kip890
        ;;
      python) run librdkafka "$python" $here/txn.py "$bootstrap" "$id" ;;
      franz)
        "$work/chaos" -bootstrap "$bootstrap" -load txn -scenario kill >"$work/franz" 2>"$work/err" &&
          say "ok    franz-go transactions and consume-modify-produce, an agent killed: $(grep consume-modify "$work/franz")" ||
          say "FAIL  franz-go: $(tail -4 "$work/franz") $(tail -2 "$work/err")"
        ;;
      tools) kafka_transactions ;;
      streams) word_count ;;
    esac
  done
  if [ -n "$started" ]; then
    CLEAN=1 scripts/down.sh >/dev/null
    started=
  fi
done
failed=$(grep -c '^FAIL' "$results" || true)
echo "$(grep -c '^ok' "$results" || true) passed, $failed failed"
[ "$failed" = 0 ]
