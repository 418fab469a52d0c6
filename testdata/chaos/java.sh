#!/usr/bin/env bash
# Runs Load.java with Kafka's own client from its Maven artifacts.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
"$here/../interop/kafka/kafka.sh" fetch
libs=$(ls -d "${SKEIN_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/skein-tools}"/kafka-*/libs | sort -V | tail -1)
exec java -Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp "$libs/*" "$here/Load.java" "$@"
