#!/usr/bin/env bash
# Checks docker-compose.yml and the Dockerfile without a Docker engine: with the library that `docker compose` itself reads its
# files with; that skein takes the agents' environment and HAProxy its configuration; and that the binary, built as the
# Dockerfile does, runs as the image's user in a folder that holds what the image holds and nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."
compose_go=github.com/compose-spec/compose-go/v2/cmd@v2.16.2
scripts/tools.sh haproxy
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT

(cd "$work" && GOFLAGS= GOBIN=$work go install "$compose_go")
"$work/cmd" --format json docker-compose.yml >"$work/compose.json"
echo "ok    docker-compose.yml conforms to the Compose Specification"

mkdir -p "$work/image/etc/ssl/certs" "$work/image/data" "$work/image/tmp"
build=$(sed -n 's/^RUN \(CGO_ENABLED=0 go build .*\) -o .*/\1/p' Dockerfile)
[ -n "$build" ] || { echo "compose.sh: the Dockerfile's build command is not found" >&2; exit 1; }
env -S "$build" -o "$work/image/skein" ./cmd/skein
! ldd "$work/image/skein" >"$work/ldd" 2>&1 || { echo "compose.sh: the binary is not static: $(cat "$work/ldd")" >&2; exit 1; }
user=$(sed -n 's/^USER //p' Dockerfile)
[[ $user =~ ^[1-9][0-9]*:[1-9][0-9]*$ ]] || { echo "compose.sh: USER $user is not a numeric one other than root" >&2; exit 1; }
echo "ok    the binary is static, the image's user is $user"

python3 - "$work" <<'END' || exit 1
import json, os, subprocess, sys
work = sys.argv[1]
services = json.load(open(work + "/compose.json"))["services"]
agents = {n: s for n, s in services.items() if n.startswith("agent-")}
assert sorted(services) == ["agent-1", "agent-2", "agent-3", "haproxy", "minio", "postgres"], sorted(services)
first = agents["agent-1"]
for name, s in agents.items():
    assert {**s, "ports": 0} == {**first, "ports": 0}, name + " differs from agent-1"
    assert s["read_only"] and s["cap_drop"] == ["ALL"] and not s.get("privileged"), name
    env = {**os.environ, **s["environment"]}
    out = subprocess.run([work + "/image/skein", *s["command"], "--print-config"], env=env, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
for s in services.values():
    for p in s.get("ports", []):
        assert p["host_ip"] == "127.0.0.1", p
lb = services["haproxy"]
assert lb["volumes"][0]["source"] == os.getcwd() + "/deploy/haproxy.cfg", lb["volumes"]
for extra in ({}, {"LB_PROXY": "v2"}):
    haproxy = "/usr/sbin/haproxy" if os.access("/usr/sbin/haproxy", os.X_OK) else "haproxy"
    out = subprocess.run([haproxy, "-c", "-f", "deploy/haproxy.cfg"], env={**os.environ, **lb["environment"], **extra}, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
print("ok    three like agents behind HAProxy; skein takes their environment, HAProxy its configuration")
END

if [ "$(id -u)" != 0 ]; then
  echo "left  the image's contents are run as its user only by root (chroot)"
  exit 0
fi
cp /etc/ssl/certs/ca-certificates.crt "$work/image/etc/ssl/certs/" 2>/dev/null || true
rmdir "$work/image/tmp" # the image has none
chown "$user" "$work/image/data"
chmod 755 "$work"
port=$((29392 + $$ % 500))
chroot --userspec="$user" "$work/image" /skein dev --listen 127.0.0.1:$port --http 127.0.0.1:$((port + 500)) --data /data 2>"$work/log" &
server=$!
for _ in $(seq 100); do
  curl -fs -o /dev/null "http://127.0.0.1:$((port + 500))/ready" && break
  kill -0 "$server" 2>/dev/null || { cat "$work/log" >&2; exit 1; }
  sleep 0.1
done
echo hello | "$work/image/skein" produce t --bootstrap 127.0.0.1:$port
[ "$("$work/image/skein" consume t --exit-at-end --bootstrap 127.0.0.1:$port)" = hello ]
[ "$(stat -c %u "/proc/$server")" = "${user%:*}" ]
kill "$server"; wait "$server"; server=
echo "ok    the image's contents serve clients as user $user, with nothing else there"
