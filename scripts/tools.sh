#!/usr/bin/env bash
# Sets up what the tests and `make up` need and this machine lacks: PostgreSQL (14 or newer), MinIO, kcat and HAProxy.
# Installs Debian packages when it may (root or sudo); builds MinIO from its Go module into a cache outside the tree. Does
# nothing for what is there or named by environment variables (docs/OPERATIONS.md, Tests).
#   tools.sh [postgres] [minio] [kcat] [haproxy] [lint]     (default: all but lint)
set -euo pipefail
tools=${SKEIN_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/skein-tools}
minio_version=v0.0.0-20260212201848-7aac2a2c5b7c
staticcheck_version=v0.8.2
updated=

# have says whether a program is on the PATH; type -P, since the functions below have the names of programs.
have() { type -P "$1" >/dev/null; }

# again tries a command that needs the network three times.
again() { "$@" || { sleep 5; "$@"; } || { sleep 15; "$@"; }; }

apt_install() {
  local sudo=
  have apt-get || { echo "tools.sh: cannot install $*: no apt-get; install it by hand" >&2; return 1; }
  if [ "$(id -u)" != 0 ]; then
    have sudo || { echo "tools.sh: cannot install $*: not root; run: apt-get install $*" >&2; return 1; }
    sudo=sudo
  fi
  if [ -z "$updated" ]; then
    $sudo apt-get -qq update >/dev/null || true
    updated=yes
  fi
  DEBIAN_FRONTEND=noninteractive again $sudo apt-get -qq install -y --no-install-recommends "$@" >/dev/null
}

postgres() {
  [ -z "${SKEIN_TEST_POSTGRES_URL:-}" ] || return 0
  have initdb && have postgres && return 0
  ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 && return 0
  echo "tools: installing PostgreSQL"
  apt_install postgresql postgresql-client
}

minio() {
  [ -z "${SKEIN_TEST_MINIO_ENDPOINT:-}" ] || return 0
  have minio || [ -x "$tools/bin/minio" ] && return 0
  echo "tools: building MinIO (about five minutes, once)"
  # Outside of this module, so that nothing of it gets into go.mod.
  (cd / && GOBIN=$tools/bin GOFLAGS= again go install "github.com/minio/minio@$minio_version")
}

kcat() { [ -n "${SKEIN_TEST_KCAT_BIN:-}" ] || have kcat || have kafkacat || { echo "tools: installing kcat"; apt_install kcat; }; }

haproxy() { [ -n "${SKEIN_TEST_HAPROXY_BIN:-}" ] || have haproxy || [ -x /usr/sbin/haproxy ] || { echo "tools: installing HAProxy"; apt_install haproxy; }; }

lint() {
  [ -x "$tools/bin/staticcheck-$staticcheck_version" ] && return 0
  echo "tools: building staticcheck"
  (cd / && GOBIN=$tools/bin GOFLAGS= again go install "honnef.co/go/tools/cmd/staticcheck@$staticcheck_version")
  mv "$tools/bin/staticcheck" "$tools/bin/staticcheck-$staticcheck_version"
}

mkdir -p "$tools/bin"
[ $# -gt 0 ] || set -- postgres minio kcat haproxy
for t in "$@"; do
  case $t in
    postgres | minio | kcat | haproxy | lint) "$t" ;;
    *) echo "tools.sh: unknown tool $t" >&2; exit 2 ;;
  esac
done
