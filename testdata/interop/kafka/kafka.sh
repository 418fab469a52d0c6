#!/usr/bin/env bash
# Apache Kafka's own command-line tools, from its Maven artifacts:
#   kafka.sh topics|configs|console-producer|console-consumer|get-offsets|delete-records|log-dirs|cluster|
#            producer-perf|consumer-perf|groups|transactions|leader-election|reassign-partitions|replica-verification|
#            storage|server  ARG …
# The jars are fetched once into SKEIN_TOOLS (default: the user's cache folder).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
tools=${SKEIN_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/skein-tools}
version=$(sed -n 's/.*<kafka.version>\(.*\)<.*/\1/p' "$here/pom.xml")
libs=$tools/kafka-$version/libs
if [ ! -e "$libs/.complete" ]; then
  mvn -q -B -f "$here/pom.xml" dependency:copy-dependencies -DoutputDirectory="$libs" -DincludeScope=runtime >&2
  touch "$libs/.complete"
fi
[ $# -gt 0 ] || { echo "usage: kafka.sh TOOL [ARG …]" >&2; exit 2; }
tool=$1; shift
case $tool in
  fetch) exit 0 ;;
  topics) class=org.apache.kafka.tools.TopicCommand ;;
  configs) class=kafka.admin.ConfigCommand ;;
  console-producer) class=org.apache.kafka.tools.ConsoleProducer ;;
  console-consumer) class=org.apache.kafka.tools.consumer.ConsoleConsumer ;;
  get-offsets) class=org.apache.kafka.tools.GetOffsetShell ;;
  delete-records) class=org.apache.kafka.tools.DeleteRecordsCommand ;;
  log-dirs) class=org.apache.kafka.tools.LogDirsCommand ;;
  cluster) class=org.apache.kafka.tools.ClusterTool ;;
  api-versions) class=org.apache.kafka.tools.BrokerApiVersionsCommand ;;
  producer-perf) class=org.apache.kafka.tools.ProducerPerformance ;;
  consumer-perf) class=org.apache.kafka.tools.ConsumerPerformance ;;
  groups) class=org.apache.kafka.tools.consumer.group.ConsumerGroupCommand ;;
  transactions) class=org.apache.kafka.tools.TransactionsCommand ;;
  leader-election) class=org.apache.kafka.tools.LeaderElectionCommand ;;
  reassign-partitions) class=org.apache.kafka.tools.reassign.ReassignPartitionsCommand ;;
  replica-verification) class=org.apache.kafka.tools.ReplicaVerificationTool ;;
  features) class=org.apache.kafka.tools.FeatureCommand ;;
  storage) class=kafka.tools.StorageTool ;;
  server) class=kafka.Kafka ;;
  *) echo "kafka.sh: unknown tool $tool" >&2; exit 2 ;;
esac
exec java ${KAFKA_OPTS:--Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1} -cp "$libs/*" "$class" "$@"
