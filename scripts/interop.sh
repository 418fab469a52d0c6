#!/usr/bin/env bash
# Other people's clients against Skein, doing real work on real input: kcat (librdkafka) and Kafka's own Java tools.
#   interop.sh [BOOTSTRAP]
# BOOTSTRAP is a cluster of either topology, for instance that of `make up`. Without it the script starts ./skein dev on a free port with a fresh folder. BYTES sets the size of the generated file
# (default 64 MiB).
set -euo pipefail
cd "$(dirname "$0")/.."
kafka=testdata/interop/kafka/kafka.sh
$kafka fetch
work=$(mktemp -d)
server=
cleanup() {
  [ -z "$server" ] || { kill "$server" 2>/dev/null && wait "$server" 2>/dev/null || true; }
  rm -rf "$work"
}
trap cleanup EXIT
bootstrap=${1:-}
if [ -z "$bootstrap" ]; then
  bootstrap=127.0.0.1:29192
  ./skein dev --listen $bootstrap --http 127.0.0.1:29190 --data "$work/data" 2>"$work/log" &
  server=$!
  for _ in $(seq 100); do
    curl -fs -o /dev/null http://127.0.0.1:29190/ready && break
    kill -0 "$server" || { cat "$work/log"; exit 1; }
    sleep 0.1
  done
fi
passed=0 failed=0
check() { # NAME WANT GOT
  if [ "$2" = "$3" ]; then
    passed=$((passed + 1)); echo "ok    $1"
  else
    failed=$((failed + 1)); echo "FAIL  $1: want $(head -c 200 <<<"$2"), got $(head -c 200 <<<"$3")"
  fi
}
sum() { sha256sum | cut -d' ' -f1; }
t=interop-$$

# Real input: the licence texts of a Debian machine, and a generated file of lines.
cat /usr/share/common-licenses/* | grep -v '^$' >"$work/licences"
head -c "$((${BYTES:-67108864} * 3 / 4))" /dev/urandom | base64 -w 1000 >"$work/big"

$kafka topics --bootstrap-server "$bootstrap" --create --topic "$t-a" --partitions 1 --config retention.ms=-1 >/dev/null
check "kafka-topics --describe" "1" \
  "$($kafka topics --bootstrap-server "$bootstrap" --describe --topic "$t-a" 2>&1 | grep -c 'PartitionCount: 1')"

kcat -b "$bootstrap" -P -t "$t-a" -p 0 <"$work/licences"
check "kcat produce and consume: licence texts" "$(sum <"$work/licences")" \
  "$(kcat -b "$bootstrap" -C -t "$t-a" -p 0 -o beginning -e -q | sum)"
lines=$(wc -l <"$work/licences")
check "kafka-get-offsets" "$t-a:0:$lines" "$($kafka get-offsets --bootstrap-server "$bootstrap" --topic "$t-a")"
check "kcat consume from an offset" "$(tail -n +101 "$work/licences" | sum)" \
  "$(kcat -b "$bootstrap" -C -t "$t-a" -p 0 -o 100 -e -q | sum)"

$kafka topics --bootstrap-server "$bootstrap" --create --topic "$t-b" --partitions 1 >/dev/null
$kafka console-producer --bootstrap-server "$bootstrap" --topic "$t-b" <"$work/licences"
check "console-producer to console-consumer" "$(sum <"$work/licences")" \
  "$($kafka console-consumer --bootstrap-server "$bootstrap" --topic "$t-b" --partition 0 --offset earliest \
    --max-messages "$lines" --timeout-ms 20000 2>/dev/null | sum)"

for codec in gzip snappy lz4 zstd; do
  kcat -b "$bootstrap" -P -t "$t-$codec" -p 0 -z $codec <"$work/licences"
  check "kcat $codec, read by console-consumer" "$(sum <"$work/licences")" \
    "$($kafka console-consumer --bootstrap-server "$bootstrap" --topic "$t-$codec" --partition 0 --offset earliest \
      --max-messages "$lines" --timeout-ms 20000 2>/dev/null | sum)"
done

kcat -b "$bootstrap" -P -t "$t-big" -p 0 <"$work/big"
check "kcat: generated file of $(stat -c %s "$work/big") bytes" "$(sum <"$work/big")" \
  "$(kcat -b "$bootstrap" -C -t "$t-big" -p 0 -o beginning -e -q | sum)"

now=$(($(date +%s) * 1000))
sleep 1
echo later | kcat -b "$bootstrap" -P -t "$t-a" -p 0
check "replay from a timestamp (kcat)" "later" "$(kcat -b "$bootstrap" -C -t "$t-a" -p 0 -o "s@$((now + 900))" -e -q | tail -1)"
check "kafka-get-offsets --time" "$t-a:0:$lines" \
  "$($kafka get-offsets --bootstrap-server "$bootstrap" --topic "$t-a" --time $((now + 900)))"

$kafka configs --bootstrap-server "$bootstrap" --alter --entity-type topics --entity-name "$t-a" \
  --add-config retention.ms=3600000,cleanup.policy=[compact,delete] >/dev/null
check "kafka-configs: alter and describe" "2" \
  "$($kafka configs --bootstrap-server "$bootstrap" --describe --entity-type topics --entity-name "$t-a" |
    grep -cE 'retention.ms=3600000 |cleanup.policy=compact,delete ')"
$kafka configs --bootstrap-server "$bootstrap" --alter --entity-type topics --entity-name "$t-a" \
  --delete-config retention.ms,cleanup.policy >/dev/null
check "kafka-configs: delete" "0" \
  "$($kafka configs --bootstrap-server "$bootstrap" --describe --entity-type topics --entity-name "$t-a" |
    grep -c 'retention.ms' || true)"
check "kafka-configs: a value that is out of bounds is refused" "1" \
  "$($kafka configs --bootstrap-server "$bootstrap" --alter --entity-type topics --entity-name "$t-a" \
    --add-config retention.ms=-2 2>&1 | grep -c 'Caused by.*retention.ms: Value must be at least -1' || true)"
check "kafka-configs: a broker's" "yes" \
  "$($kafka configs --bootstrap-server "$bootstrap" --describe --entity-type brokers --all 2>/dev/null |
    grep 'message.max.bytes=' >/dev/null && echo yes)"

$kafka topics --bootstrap-server "$bootstrap" --alter --topic "$t-b" --partitions 3
check "kafka-topics --alter --partitions" "3" \
  "$($kafka topics --bootstrap-server "$bootstrap" --describe --topic "$t-b" | grep -c 'Leader:')"
check "kafka-topics: fewer partitions are refused" "1" \
  "$($kafka topics --bootstrap-server "$bootstrap" --alter --topic "$t-b" --partitions 2 2>&1 |
    grep -c 'currently has 3 partition(s); 2 would not be an increase' || true)"
check "kafka-topics: a topic that exists is refused" "1" \
  "$($kafka topics --bootstrap-server "$bootstrap" --create --topic "$t-b" 2>&1 |
    grep -c "Error.*Topic '$t-b' already exists" || true)"

# Consumer groups: three members each, every line exactly once.
$kafka topics --bootstrap-server "$bootstrap" --create --topic "$t-g" --partitions 6 >/dev/null
seq 1 3000 >"$work/numbers"
kcat -b "$bootstrap" -P -t "$t-g" -p -1 -X sticky.partitioning.linger.ms=0 <"$work/numbers"
members() { # GROUP COMMAND …: runs three of them until all lines are there, then a little longer for a line too many
  local group=$1 pids=() i; shift
  for i in 1 2 3; do "$@" >"$work/$group.$i" 2>"$work/$group.$i.err" & pids+=($!); done
  for _ in $(seq 600); do
    [ "$(cat "$work/$group".[123] | grep -cE '^[0-9]+$' || true)" -ge 3000 ] && break
    sleep 0.1
  done
  sleep 2
  kill "${pids[@]}" 2>/dev/null || true
  wait "${pids[@]}" 2>/dev/null || true
  # The tool says on stdout what it did and which of its options are deprecated.
  cat "$work/$group".[123] | grep -vE '^(Processed a total|Option .* is deprecated)' | sort -n | sum
}
check "kcat -G: three members" "$(sum <"$work/numbers")" \
  "$(members "$t-kcat" kcat -b "$bootstrap" -X auto.offset.reset=earliest -q -u -G "$t-kcat" "$t-g")"
for protocol in classic consumer; do
  check "kafka-console-consumer --group, group.protocol=$protocol: three members" "$(sum <"$work/numbers")" \
    "$(members "$t-$protocol" $kafka console-consumer --bootstrap-server "$bootstrap" --topic "$t-g" --group "$t-$protocol" \
      --consumer-property group.protocol=$protocol --consumer-property auto.offset.reset=earliest)"
  check "kafka-consumer-groups --describe, $protocol: no lag" "3000 0" \
    "$($kafka groups --bootstrap-server "$bootstrap" --describe --group "$t-$protocol" 2>/dev/null |
      awk -v t="$t-g" '$2 == t { at += $4; lag += $6 } END { print at, lag }')"
  check "kafka-consumer-groups --reset-offsets, $protocol" "6" \
    "$($kafka groups --bootstrap-server "$bootstrap" --group "$t-$protocol" --topic "$t-g" --reset-offsets --to-earliest --execute \
      2>/dev/null | awk -v t="$t-g" '$2 == t && $4 == 0' | wc -l)"
  check "kafka-consumer-groups --delete, $protocol" "1" \
    "$($kafka groups --bootstrap-server "$bootstrap" --group "$t-$protocol" --delete 2>&1 | grep -c 'was successful' || true)"
done
check "kafka-consumer-groups --list" "$t-kcat" "$($kafka groups --bootstrap-server "$bootstrap" --list | grep "^$t-" | sort | tr '\n' ' ' | sed 's/ $//')"

echo "{\"partitions\":[{\"topic\":\"$t-b\",\"partition\":0,\"offset\":10}],\"version\":1}" >"$work/delete.json"
$kafka delete-records --bootstrap-server "$bootstrap" --offset-json-file "$work/delete.json" >/dev/null
check "kafka-delete-records" "$t-b:0:10" \
  "$($kafka get-offsets --bootstrap-server "$bootstrap" --topic "$t-b" --partitions 0 --time earliest)"
check "kafka-delete-records: beyond the end" "1" \
  "$(sed -i 's/:10}/:99999999}/' "$work/delete.json"
    $kafka delete-records --bootstrap-server "$bootstrap" --offset-json-file "$work/delete.json" 2>&1 |
    grep -c 'OffsetOutOfRange' || true)"
check "kafka-log-dirs: what was produced has a size" "1" \
  "$($kafka log-dirs --bootstrap-server "$bootstrap" --describe --topic-list "$t-b" |
    grep -cE '"partition":"'"$t-b"'-0","size":[1-9][0-9]+,"offsetLag":0')"
check "kafka-broker-api-versions" "yes" \
  "$($kafka api-versions --bootstrap-server "$bootstrap" | grep 'CreateTopics(19): 2 to 7 \[usable: 7\]' >/dev/null && echo yes)"
check "kafka-cluster cluster-id" "1" "$($kafka cluster cluster-id --bootstrap-server "$bootstrap" | grep -c 'Cluster ID: ')"
check "kafka-cluster list-endpoints" "yes" \
  "$($kafka cluster list-endpoints --bootstrap-server "$bootstrap" | grep -E '127.0.0.1 +[0-9]+ .* broker' >/dev/null && echo yes)"

# What a cluster without replicas of its own, quotas and users says to the tools that ask for them.
check "kafka-leader-election: preferred" "1" \
  "$($kafka leader-election --bootstrap-server "$bootstrap" --election-type preferred --topic "$t-b" --partition 0 2>&1 |
    grep -c "Valid replica already elected for partitions $t-b-0" || true)"
check "kafka-leader-election: all partitions" "0" \
  "$($kafka leader-election --bootstrap-server "$bootstrap" --election-type unclean --all-topic-partitions 2>&1 | grep -ciE 'error|exception' || true)"
check "kafka-reassign-partitions --list" "1" \
  "$($kafka reassign-partitions --bootstrap-server "$bootstrap" --list 2>&1 | grep -c 'No partition reassignments found' || true)"
replicas=$($kafka topics --bootstrap-server "$bootstrap" --describe --topic "$t-b" | sed -n 's/.*Partition: 0.*Replicas: \([0-9,]*\).*/\1/p')
dirs=$(sed 's|[0-9]\+|"/skein"|g' <<<"$replicas")
assignment() { echo "{\"version\":1,\"partitions\":[{\"topic\":\"$t-b\",\"partition\":0,\"replicas\":[$1]${2:+,\"log_dirs\":[$2]}}]}"; }
reassign() { $kafka reassign-partitions --bootstrap-server "$bootstrap" --reassignment-json-file "$@" 2>&1; }
assignment "$replicas" "$dirs" >"$work/same.json"
check "kafka-reassign-partitions --execute: as it is, log folders included" "1" \
  "$(reassign "$work/same.json" --execute | grep -c "Successfully started partition reassignment for $t-b-0" || true)"
check "kafka-reassign-partitions --verify" "1" \
  "$(reassign "$work/same.json" --verify | grep -c "Reassignment of partition $t-b-0 is completed" || true)"
check "kafka-reassign-partitions --cancel" "1" \
  "$(reassign "$work/same.json" --cancel | grep -c 'None of the specified partition reassignments are active' || true)"
first=${replicas%%,*}
other=$($kafka cluster list-endpoints --bootstrap-server "$bootstrap" | awk -v replicas=",$replicas," \
  '$1 ~ /^[0-9]+$/ && !index(replicas, "," $1 ",") { print $1; exit }')
if [ -n "$other" ]; then # topology direct
  assignment "$other,$first" >"$work/other.json"
  check "kafka-reassign-partitions --execute: another assignment is refused" "1" \
    "$(reassign "$work/other.json" --execute | grep -c 'Error reassigning partition' || true)"
fi
timeout 20 $kafka replica-verification --broker-list "$bootstrap" --topics-include "$t-b" --report-interval-ms 1000 >"$work/lag" 2>&1 || true
check "kafka-replica-verification: no lag" "yes" \
  "$(grep -q 'max lag is 0 for partition' "$work/lag" && ! grep -q 'max lag is [1-9]' "$work/lag" && echo yes)"
for entity in users clients ips; do
  check "kafka-configs --describe: no $entity" "" \
    "$($kafka configs --bootstrap-server "$bootstrap" --describe --entity-type $entity 2>&1)"
done
check "kafka-configs: a quota is refused" "1" \
  "$($kafka configs --bootstrap-server "$bootstrap" --alter --entity-type clients --entity-name c \
    --add-config producer_byte_rate=1000 2>&1 | grep -c 'Caused by.*does not support ALTER_CLIENT_QUOTAS' || true)"

$kafka topics --bootstrap-server "$bootstrap" --delete --topic "$t-b"
check "kafka-topics --delete" "0" "$($kafka topics --bootstrap-server "$bootstrap" --list | grep -cx "$t-b" || true)"

check "kafka-producer-perf" "1" \
  "$($kafka producer-perf --topic "$t-perf" --num-records 20000 --record-size 1024 --throughput -1 \
    --producer-props bootstrap.servers="$bootstrap" enable.idempotence=true | grep -c '20000 records sent')"

echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
