#!/usr/bin/env bash
# Runs every fuzz test of the tree, one after the other, for the time given (default 20s).
set -euo pipefail
time=${1:-20s}
grep -rlE '^func Fuzz' --include='*_test.go' . | while read -r file; do
  dir=$(dirname "$file")
  grep -oE '^func Fuzz[A-Za-z0-9_]+' "$file" | sed 's/^func //' | while read -r name; do
    echo "$dir $name"
    go test "$dir" -run '^$' -fuzz "^$name\$" -fuzztime "$time" </dev/null
  done
done
