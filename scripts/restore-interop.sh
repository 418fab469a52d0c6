#!/usr/bin/env bash
# Applications that keep their state in compacted topics, with key compaction at work: Kafka Streams (both processing
# guarantees) restores a wiped store from its changelog; Kafka Connect (distributed, file connectors, exactly-once support)
# starts again from its three topics; MirrorMaker 2 copies to a second Skein; a reader of a table gets to the end that the
# cluster states. Two `skein dev`. Ends with "N passed, N failed".
#   SKEIN: the binary (./skein). PORT: the first of ten ports (28500).
set -euo pipefail
cd "$(dirname "$0")/.."
here=testdata/interop/restore
skein=${SKEIN:-$PWD/skein}
port=${PORT:-28500}
tools=${SKEIN_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/skein-tools}
version=$(sed -n 's/.*<kafka.version>\(.*\)<.*/\1/p' "$here/pom.xml")
libs=$tools/kafka-restore-$version/libs
if [ ! -e "$libs/.complete" ]; then
  mvn -q -B -f "$here/pom.xml" dependency:copy-dependencies -DoutputDirectory="$libs" -DincludeScope=runtime >&2
  touch "$libs/.complete"
fi
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait 2>/dev/null || true; [ -n "${KEEP:-}" ] || rm -rf "$work"' EXIT
javac -cp "$libs/*" -d "$work/classes" "$here/Restore.java"
java_=(java -Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -cp "$work/classes:$libs/*")
restore() { "${java_[@]}" Restore "$@" 2>>"$work/java.log"; }

passed=0 failed=0
check() { # NAME WANT GOT
  if [ "$2" = "$3" ]; then
    passed=$((passed + 1)); echo "ok    $1"
  else
    failed=$((failed + 1)); echo "FAIL  $1: want $(head -c 300 <<<"$2"), got $(head -c 300 <<<"$3")"
  fi
}
wait_for() { # WHAT CMD …: up to two minutes
  local what=$1
  shift
  for _ in $(seq 1200); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done
  echo "not reached: $what" >&2
  return 1
}
server() { # N
  "$skein" dev --listen 127.0.0.1:$((port + 2 * $1)) --http 127.0.0.1:$((port + 2 * $1 + 1)) --data "$work/data$1" \
    --compaction-interval 500ms >"$work/skein$1.log" 2>&1 &
  wait_for "skein $1" curl -fs "http://127.0.0.1:$((port + 2 * $1 + 1))/ready"
}
metric() { curl -s "http://127.0.0.1:$((port + 1))/metrics" | awk -v m="$1" '$1 == m {printf "%d", $2}'; }
# compacted TOPIC: until all of it is merged and compacted: fewer records than offsets, and the same in two looks.
count() { "$skein" consume "$1" --bootstrap "$a" --from earliest --exit-at-end -f '%k\n' 2>/dev/null | wc -l; }
merges() { metric 'skein_compactor_jobs_total{job="clean",outcome="ok"}'; }
settled() { [ "$(metric skein_compactor_unmerged_rows)" = 0 ]; }
compacted() {
  local before
  wait_for "everything merged" settled
  before=$(merges)
  wait_for "three more rounds of key compaction" eval '[ "$(merges)" -ge $((before + 3)) ]' # shellcheck disable=SC2016
}
a=127.0.0.1:$port b=127.0.0.1:$((port + 2))
server 0
server 1

# A table, written in transactions of which some abort, one after the last record; Schema Registry and Kafka's own tools
# read such a topic to the end offset.
"$skein" topic create table --bootstrap "$a" -p 3 -c cleanup.policy=compact -c delete.retention.ms=0 -c min.cleanable.dirty.ratio=0.01
restore write "$a" table 300 12 m1 >"$work/table.want"
compacted
check "table: written again after compaction" 0 "$(restore write "$a" table 300 12 m2 >"$work/table.want"; echo $?)"
compacted
for isolation in read_committed read_uncommitted; do
  restore table "$a" table $isolation >"$work/table.got" 2>"$work/table.err" || true
  check "table, $isolation: the newest values, read to the end offset" "$(sha256sum <"$work/table.want")" "$(sha256sum <"$work/table.got")"
done
check "table: compacted" yes "$([ "$(count table)" -lt 400 ] && echo yes || echo "$(count table) records")"

# Kafka Streams: the store's content is the same after its local state is wiped and restored from the compacted changelog.
for guarantee in at_least_once exactly_once_v2; do
  app=app-$guarantee
  "$skein" topic create "in-$guarantee" --bootstrap "$a" -p 2
  restore input "$a" "in-$guarantee" 200 40 m1 >/dev/null
  restore streams "$a" $app "$work/state" "in-$guarantee" $guarantee m1 >"$work/$app.1"
  compacted
  rm -rf "$work/state"
  restore streams "$a" $app "$work/state" "in-$guarantee" $guarantee m1 >"$work/$app.2" || true
  check "streams, $guarantee: the restored store is what it was ($(grep -c = "$work/$app.1") keys)" \
    "$(grep = "$work/$app.1" | sha256sum)" "$(grep = "$work/$app.2" | sha256sum)"
  n=$(sed -n 's/^restored //p' "$work/$app.2")
  check "streams, $guarantee: restored from a compacted changelog ($n records of 6000 written)" yes \
    "$([ "${n:-0}" -gt 100 ] && [ "$n" -lt 1500 ] && echo yes || echo "$n records")"
  restore input "$a" "in-$guarantee" 200 10 m2 >/dev/null
  restore streams "$a" $app "$work/state" "in-$guarantee" $guarantee m2 >"$work/$app.3"
  compacted
  rm -rf "$work/state"
  restore streams "$a" $app "$work/state" "in-$guarantee" $guarantee m2 >"$work/$app.4" || true
  check "streams, $guarantee: and once more, after more input" "$(grep = "$work/$app.3" | sha256sum)" "$(grep = "$work/$app.4" | sha256sum)"
done

# Kafka Connect.
rest=http://127.0.0.1:$((port + 6))
cat >"$work/connect.properties" <<TXT
bootstrap.servers=$a
group.id=connect
listeners=$rest
key.converter=org.apache.kafka.connect.storage.StringConverter
value.converter=org.apache.kafka.connect.storage.StringConverter
config.storage.topic=connect-configs
offset.storage.topic=connect-offsets
status.storage.topic=connect-status
config.storage.replication.factor=1
offset.storage.replication.factor=1
status.storage.replication.factor=1
offset.storage.partitions=5
offset.flush.interval.ms=300
exactly.once.source.support=enabled
plugin.discovery=service_load
TXT
connect() {
  "${java_[@]}" org.apache.kafka.connect.cli.ConnectDistributed "$work/connect.properties" >>"$work/connect.log" 2>&1 &
  worker=$!
  wait_for "Connect" curl -fs "$rest/connectors"
}
end_connect() { kill $worker; wait $worker 2>/dev/null || true; }
put() { # NAME JSON
  wait_for "connector $1" curl -fs -X PUT -H 'Content-Type: application/json' -d "$2" "$rest/connectors/$1/config"
}
running() { [ "$(curl -s "$rest/connectors/$1/status" | grep -o RUNNING | wc -l)" = 2 ]; }
source_() { echo "{\"connector.class\":\"org.apache.kafka.connect.file.FileStreamSourceConnector\",\"file\":\"$work/lines.in\",\"topic\":\"lines\",\"tasks.max\":\"1\",\"batch.size\":\"$1\"}"; }
lines() { seq "$1" "$2" | sed 's/^/line /'; }
arrived() { [ "$(wc -l <"$work/lines.out")" -ge "$1" ]; }
config_of() { curl -s "$rest/connectors/$1/config" | tr ',{}' '\n\n\n' | sort; }
lines 1 1000 >"$work/lines.in"
connect
put source "$(source_ 100)"
put sink "{\"connector.class\":\"org.apache.kafka.connect.file.FileStreamSinkConnector\",\"file\":\"$work/lines.out\",\"topics\":\"lines\",\"tasks.max\":\"1\"}"
wait_for "the first lines" arrived 1000
for i in $(seq 12); do # configs and offsets over and over
  put source "$(source_ $((1000 + i)))" # more than is appended at a time: the connector keeps back what fills no batch
  wait_for "the connectors" running source
  lines $((1000 + 100 * (i - 1) + 1)) $((1000 + 100 * i)) >>"$work/lines.in"
done
wait_for "all lines" arrived 2200
for t in configs offsets status; do
  check "connect: cleanup.policy of connect-$t" compact \
    "$("$skein" topic describe "connect-$t" --bootstrap "$a" -o json | tr -d ' \n' | sed -n 's/.*"cleanup.policy"[^c]*\(compact[a-z,]*\).*/\1/p')"
done
source_config=$(config_of source) sink_config=$(config_of sink)
end_connect
compacted
check "connect: its topics were compacted" yes "$([ "$(count connect-configs)" -lt 40 ] && echo yes || echo "$(count connect-configs) records of configs")"
connect
wait_for "source" running source
wait_for "sink" running sink
check "connect: the source's config after a restart" "$source_config" "$(config_of source)"
check "connect: the sink's config after a restart" "$sink_config" "$(config_of sink)"
lines 2201 3000 >>"$work/lines.in"
wait_for "lines after the restart" arrived 3000 || true
sleep 2 # for a line too many
check "connect: every line once, in order, over the restart" "$(lines 1 3000 | sha256sum)" "$(sha256sum <"$work/lines.out")"
end_connect

# MirrorMaker 2, from the first Skein to the second, restarted in between.
cat >"$work/mm2.properties" <<TXT
clusters=a,b
a.bootstrap.servers=$a
b.bootstrap.servers=$b
a->b.enabled=true
a->b.topics=lines|table
b->a.enabled=false
a->b.groups=.*
a->b.sync.group.offsets.enabled=true
a->b.emit.checkpoints.interval.seconds=1
a->b.sync.group.offsets.interval.seconds=1
a->b.refresh.topics.interval.seconds=5
b->a.emit.heartbeats.enabled=false
replication.factor=1
checkpoints.topic.replication.factor=1
heartbeats.topic.replication.factor=1
offset-syncs.topic.replication.factor=1
offset.storage.replication.factor=1
status.storage.replication.factor=1
config.storage.replication.factor=1
dedicated.mode.enable.internal.rest=false
plugin.discovery=service_load
TXT
mirror() {
  "${java_[@]}" org.apache.kafka.connect.mirror.MirrorMaker "$work/mm2.properties" >>"$work/mm2.log" 2>&1 &
  worker=$!
}
mirrored() { "$skein" consume a.lines --bootstrap "$b" --from earliest --exit-at-end -f '%s\n' 2>/dev/null; }
mirrored_to() { [ "$(mirrored | sort -u | wc -l)" -ge "$1" ]; }
mirror
wait_for "the lines at the second Skein" mirrored_to 3000 || true
check "mirror maker: the lines" "$(lines 1 3000 | sha256sum)" "$(mirrored | sha256sum)"
restore table "$b" a.table read_committed >"$work/table.got" 2>/dev/null || true
check "mirror maker: the table" "$(sha256sum <"$work/table.want")" "$(sha256sum <"$work/table.got")"
check "mirror maker: the table's policy" compact \
  "$("$skein" topic describe a.table --bootstrap "$b" -o json | tr -d ' \n' | sed -n 's/.*"cleanup.policy"[^c]*\(compact[a-z,]*\).*/\1/p')"
end_connect
lines 3001 3100 | "$skein" produce lines --bootstrap "$a" >/dev/null
mirror
wait_for "the lines after the restart" mirrored_to 3100 || true
check "mirror maker: goes on after a restart" "$(lines 1 3100 | sort | sha256sum)" "$(mirrored | sort -u | sort | sha256sum)"
end_connect

echo
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
