#!/usr/bin/env bash
# Builds skein with a wall clock that is wrong by SECONDS, as it would be on a machine whose clock is: every time.Now of the
# process, its libraries' too (S3 signatures, TLS), is shifted; monotonic time is not.
#   clock.sh SECONDS OUT
# A static Go program asks the kernel for the time without libc, so that libfaketime has no effect on it, and a time
# namespace shifts only the monotonic clocks. So time.Now of the standard library is replaced in this build, with
# go build -overlay. The program's own source is what is released.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=$1 out=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
source=$(go env GOROOT)/src/time/time.go
[ "$(grep -c 'sec, nsec, mono := runtimeNow()' "$source")" = 1 ] || { echo "clock.sh: this Go's time.Now looks different" >&2; exit 1; }
sed 's/sec, nsec, mono := runtimeNow()/&\n\tsec += wrongBy()/' "$source" >"$work/time.go"
cat >>"$work/time.go" <<'END'

// wrongSeconds is set by the linker: a decimal number.
var wrongSeconds string

func wrongBy() (n int64) {
	for i := 0; i < len(wrongSeconds); i++ {
		if c := wrongSeconds[i]; c >= '0' && c <= '9' {
			n = 10*n + int64(c-'0')
		}
	}
	if len(wrongSeconds) > 0 && wrongSeconds[0] == '-' {
		return -n
	}
	return n
}
END
printf '{"Replace": {"%s": "%s"}}\n' "$source" "$work/time.go" >"$work/overlay.json"
CGO_ENABLED=0 go build -trimpath -overlay "$work/overlay.json" -ldflags "-X time.wrongSeconds=$seconds" -o "$out" ./cmd/skein
