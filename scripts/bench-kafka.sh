#!/usr/bin/env bash
# Produce and consume of 1 KiB records: Skein on a file bucket and on MinIO against Apache Kafka (KRaft, one node, local
# disk), same machine, same clients, in turn. Prints a line for each run and the medians. ROUNDS (3), SECONDS_EACH (10).
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${ROUNDS:-3} duration=${SECONDS_EACH:-10} partitions=${PARTITIONS:-4} producers=${PRODUCERS:-2}
tools=${SKEIN_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/skein-tools}
kafka=$PWD/testdata/interop/kafka/kafka.sh
skein=${SKEIN:-$PWD/skein}
minio=$(command -v minio || echo "$tools/bin/minio")
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$work"' EXIT
$kafka fetch

cat >"$work/kafka.properties" <<TXT
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:29495
listeners=PLAINTEXT://127.0.0.1:29496,CONTROLLER://127.0.0.1:29495
advertised.listeners=PLAINTEXT://127.0.0.1:29496
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs=$work/kafka
offsets.topic.replication.factor=1
TXT
wait_for() { for _ in $(seq 300); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done; echo "not ready: $*" >&2; exit 1; }

start_file() {
  "$skein" dev --listen 127.0.0.1:29496 --http 127.0.0.1:29497 --data "$work/file" >"$work/log" 2>&1 &
  pid=$!
  wait_for curl -fs http://127.0.0.1:29497/ready
}
start_minio() {
  MINIO_ROOT_USER=skein MINIO_ROOT_PASSWORD=skeinskein MINIO_BROWSER=off "$minio" server --quiet \
    --address 127.0.0.1:29498 "$work/minio" >"$work/minio.log" 2>&1 &
  store=$!
  wait_for curl -fs http://127.0.0.1:29498/minio/health/ready
  AWS_ACCESS_KEY_ID=skein AWS_SECRET_ACCESS_KEY=skeinskein "$skein" agent --listen 127.0.0.1:29496 \
    --advertise 127.0.0.1:29496 --http 127.0.0.1:29497 --metadata "sqlite:$work/minio.db" --create-bucket --put-budget 0 \
    --bucket 's3://bench?region=us-east-1&endpoint=http://127.0.0.1:29498&path_style=true' >"$work/log" 2>&1 &
  pid=$!
  wait_for curl -fs http://127.0.0.1:29497/ready
}
start_kafka() {
  $kafka storage format -t "$($kafka storage random-uuid)" -c "$work/kafka.properties" >/dev/null 2>&1
  KAFKA_OPTS="-Xms1g -Xmx2g -XX:+UseG1GC" $kafka server "$work/kafka.properties" >"$work/log" 2>&1 &
  pid=$!
  wait_for "$skein" topic list --bootstrap 127.0.0.1:29496
}
stop() {
  kill "$pid" ${store:-} && wait "$pid" ${store:-} 2>/dev/null || true
  store=
  rm -rf "$work/file" "$work/minio" "$work/minio.db"* "$work/kafka"
}
field() { sed -n "s/.*\"$1\": *\([0-9.]*\).*/\1/p" | head -1; }

for round in $(seq "$rounds"); do
  for system in file minio kafka; do
    "start_$system"
    "$skein" bench produce --bootstrap 127.0.0.1:29496 --topic bench --partitions "$partitions" --record-bytes 1024 \
      --producers "$producers" --duration "${duration}s" --random -o json >"$work/produce.json"
    "$skein" bench consume --bootstrap 127.0.0.1:29496 --topic bench --consumers 2 --from earliest -o json \
      >"$work/consume.json"
    echo "$round $system $(field mib_per_second <"$work/produce.json") $(field p50_ms <"$work/produce.json")" \
      "$(field p99_ms <"$work/produce.json") $(field mib_per_second <"$work/consume.json")" | tee -a "$work/rows"
    stop
  done
done
median() { sort -n | awk '{a[NR]=$1} END {print (NR % 2) ? a[(NR+1)/2] : (a[NR/2]+a[NR/2+1])/2}'; }
echo
echo "medians of $rounds rounds: system, produce MiB/s, p50 ms, p99 ms, consume MiB/s"
for system in file minio kafka; do
  printf '%s' "$system"
  for column in 3 4 5 6; do
    printf ' %s' "$(awk -v s="$system" -v c="$column" '$2 == s {print $c}' "$work/rows" | median)"
  done
  echo
done
