# What up.sh, down.sh and chaos.sh share: names, ports, and how to start and stop one process of the topology.
state=$PWD/.skein-up
tools=${SKEIN_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/skein-tools}
topology=${TOPOLOGY:-virtual}
bin=${BIN:-$PWD/skein}
# PORT_SHIFT is added to every port, so that two of these can run on one machine.
shift_by=${PORT_SHIFT:-0}
lb_port=$((19092 + shift_by))
lb_http_port=$((19192 + shift_by))
postgres_port=$((19432 + shift_by))
minio_port=$((19900 + shift_by))
# Only for this topology on loopback.
minio_user=skein
minio_password=skein-local-only
ready_seconds=60

case $topology in
  virtual | direct) ;;
  *) echo "TOPOLOGY=$topology: want virtual or direct" >&2; exit 2 ;;
esac

# bootstrap is what clients are told: the load balancer, or the agents.
bootstrap() {
  case $topology in
    virtual) echo "127.0.0.1:$lb_port" ;;
    direct) echo "127.0.0.1:$(kafka_port agent-1),127.0.0.1:$(kafka_port agent-2),127.0.0.1:$(kafka_port agent-3)" ;;
  esac
}

kafka_port() { echo $((lb_port + ${1#agent-})); }
http_port() { echo $((lb_http_port + ${1#agent-})); }
zone() { [ $((${1#agent-} % 2)) = 1 ] && echo zone-a || echo zone-b; }

pid_of() { cat "$state/$1.pid" 2>/dev/null || true; }

# alive NAME: whether the process of the pid file runs and is ours, since numbers are used again.
alive() {
  local pid
  pid=$(pid_of "$1")
  [ -n "$pid" ] && [ -r "/proc/$pid/cmdline" ] && tr '\0' ' ' <"/proc/$pid/cmdline" | grep -qF "skein-up"
}

# launch NAME CMD …: as a process of its own that outlives this script, and keeps none of its open files: a lock that the
# script was started under would last as long as the process.
launch() {
  local name=$1
  shift
  (
    for fd in "/proc/$BASHPID/fd/"*; do
      fd=${fd##*/}
      [ "$fd" -le 2 ] || eval "exec $fd>&-"
    done
    exec setsid "$@"
  ) </dev/null >>"$state/$name.log" 2>&1 &
  echo $! >"$state/$name.pid"
}

# await NAME CMD …: until CMD succeeds.
await() {
  local name=$1
  shift
  for _ in $(seq $((ready_seconds * 10))); do
    "$@" >/dev/null 2>&1 && return 0
    alive "$name" || { sleep 0.2; alive "$name"; } || { echo "$name ended; the end of its log:" >&2; tail -5 "$state/$name.log" >&2; return 1; }
    sleep 0.1
  done
  echo "$name is not ready after $ready_seconds s; the end of its log:" >&2
  tail -5 "$state/$name.log" >&2
  return 1
}

# gone NAME: waits until a process that was killed has left no trace; Postgres does not start beside a zombie of its own.
gone() {
  local pid
  pid=$(pid_of "$1")
  [ -n "$pid" ] || return 0
  for _ in $(seq 100); do
    [ -e "/proc/$pid" ] && grep -q '^State:.Z' "/proc/$pid/status" 2>/dev/null || return 0
    sleep 0.1
  done
}

start() {
  mkdir -p "$state"
  if ! alive "$1"; then
    gone "$1"
    case $1 in
      postgres) start_postgres ;;
      minio) start_minio ;;
      agent-[1-4]) start_agent "$1" ;;
      haproxy) start_haproxy ;;
      *) echo "unknown process $1" >&2; return 2 ;;
    esac
  fi
  case $1 in
    postgres) await postgres pg_isready_local && make_database ;;
    # 403 without a credential is its first answer that means serving.
    minio) await minio sh -c "[ \"\$(curl -s -m 2 -o /dev/null -w '%{http_code}' http://127.0.0.1:$minio_port/)\" = 403 ]" ;;
    agent-*) await "$1" curl -fs -m 2 "http://127.0.0.1:$(http_port "$1")/ready" ;;
    haproxy) await haproxy curl -fs -m 2 "http://127.0.0.1:$lb_http_port/ready" ;;
  esac
}

# end NAME SIGNAL
end() {
  if alive "$1"; then kill -s "$2" "$(pid_of "$1")"; fi
}

# stop NAME: in order; after 40 s by force.
stop() {
  alive "$1" || { rm -f "$state/$1.pid"; return 0; }
  local pid how=TERM
  pid=$(pid_of "$1")
  [ "$1" != postgres ] || how=INT # cut off clients that are left
  kill -s CONT "$pid" 2>/dev/null || true # a frozen process hears nothing
  end "$1" "$how"
  for _ in $(seq 400); do
    alive "$1" || { rm -f "$state/$1.pid"; return 0; }
    sleep 0.1
  done
  echo "$1 did not end; kill -9" >&2
  kill -9 "$pid" 2>/dev/null || true
  rm -f "$state/$1.pid"
}

# postgres_bin: Debian keeps the programs outside of PATH.
postgres_bin() {
  local dir
  dir=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1)
  [ -n "$dir" ] || dir=$(dirname "$(readlink -f "$(command -v postgres)")")
  echo "$dir"
}

pg_isready_local() { "$(postgres_bin)/pg_isready" -q -h 127.0.0.1 -p $postgres_port -U skein; }

# as_postgres CMD …: Postgres refuses to run as root.
as_postgres() {
  if [ "$(id -u)" != 0 ]; then "$@"; return; fi
  local user=postgres
  id postgres >/dev/null 2>&1 || user=nobody
  setpriv --reuid="$user" --regid="$(id -g "$user")" --clear-groups "$@"
}

start_postgres() {
  local dir pg
  pg=$(postgres_bin)
  dir=$(cat "$state/postgres.dir" 2>/dev/null || true)
  if [ -z "$dir" ]; then
    dir=$state/postgres
    if ! as_postgres test -x "$state"; then
      # The user that Postgres runs as cannot get there.
      dir=$(mktemp -d /var/tmp/skein-up-postgres.XXXXXX)
      echo "Postgres' data is in $dir: its user cannot enter $state"
    fi
    mkdir -p "$dir"
    [ "$(id -u)" != 0 ] || chown "$(as_postgres id -u):$(as_postgres id -g)" "$dir"
    (cd / && as_postgres "$pg/initdb" -D "$dir/data" -U skein --auth=trust --encoding=UTF8 --no-locale >/dev/null)
    echo "$dir" >"$state/postgres.dir"
  fi
  local run=("$pg/postgres" -D "$dir/data" -p $postgres_port -c listen_addresses=127.0.0.1
    -c "unix_socket_directories=" -c max_connections=200 -c cluster_name=skein-up)
  if [ "$(id -u)" = 0 ]; then
    local user=postgres
    id postgres >/dev/null 2>&1 || user=nobody
    run=(setpriv --reuid="$user" --regid="$(id -g "$user")" --clear-groups "${run[@]}")
  fi
  launch postgres "${run[@]}"
}

# make_database: also after a start that was interrupted.
make_database() {
  local sql
  sql="$(postgres_bin)/psql -h 127.0.0.1 -p $postgres_port -U skein -d postgres -v ON_ERROR_STOP=1 -qtAX"
  $sql -c "SELECT 'CREATE DATABASE skein' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'skein')" | $sql
  echo "postgres://skein@127.0.0.1:$postgres_port/skein?sslmode=disable" >"$state/metadata.url"
}

start_minio() {
  local minio
  minio=$(command -v minio || echo "$tools/bin/minio")
  cat >"$state/env" <<END
export AWS_ACCESS_KEY_ID=$minio_user AWS_SECRET_ACCESS_KEY=$minio_password AWS_REGION=us-east-1
export MINIO_ACCESS_KEY=$minio_user MINIO_SECRET_KEY=$minio_password
END
  echo "s3://skein?region=us-east-1&endpoint=http://127.0.0.1:$minio_port&path_style=true" >"$state/bucket.url"
  launch minio env MINIO_ROOT_USER=$minio_user MINIO_ROOT_PASSWORD=$minio_password MINIO_REGION=us-east-1 \
    MINIO_BROWSER=off MINIO_UPDATE=off MINIO_CALLHOME_ENABLE=off \
    "$minio" server "$state/minio" --address "127.0.0.1:$minio_port" --config-dir "$state/minio-config"
}

start_agent() {
  local name=$1 port advertise more=() own=BIN_${1#agent-}
  port=$(kafka_port "$name")
  advertise=127.0.0.1:$lb_port
  if [ "$topology" = direct ]; then
    advertise=127.0.0.1:$port
    more=(--node-id "${name#agent-}" --zone "$(zone "$name")")
  fi
  cat >"$state/$name.yaml" <<END
listen: 127.0.0.1:$port
advertise: $advertise
http: 127.0.0.1:$(http_port "$name")
metadata: ${METADATA_URL:-$(cat "$state/metadata.url")}
bucket: $(cat "$state/bucket.url")
create-bucket: true
topology: $topology
proxy-protocol: $([ -n "${LB_PROXY:-}" ] && echo true || echo false)
END
  # shellcheck disable=SC1091,SC2086
  (. "$state/env" && launch "$name" ${AGENT_WRAP:-} "${!own:-$bin}" agent --config "$state/$name.yaml" "${more[@]}" ${AGENT_FLAGS:-})
}

start_haproxy() {
  launch haproxy env LB_BIND="127.0.0.1:$lb_port" LB_HTTP="127.0.0.1:$lb_http_port" \
    AGENT_1="127.0.0.1:$(kafka_port agent-1)" AGENT_1_HTTP="$(http_port agent-1)" AGENT_2="127.0.0.1:$(kafka_port agent-2)" AGENT_2_HTTP="$(http_port agent-2)" \
    AGENT_3="127.0.0.1:$(kafka_port agent-3)" AGENT_3_HTTP="$(http_port agent-3)" AGENT_4="127.0.0.1:$(kafka_port agent-4)" AGENT_4_HTTP="$(http_port agent-4)" \
    "$(command -v haproxy || echo /usr/sbin/haproxy)" -db -f "$PWD/deploy/haproxy.cfg" -L skein-up
}
