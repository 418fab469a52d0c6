package main

import (
	"fmt"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
)

// kind is the type of an option's value.
type kind string

// Kinds of options. The names are what --help and the documentation show. None is a type name that viper would convert
// on its own (int, bool, …): parsing is ours, so that every mistake has a clear error.
const (
	kindString   kind = "string"
	kindSwitch   kind = "true|false"
	kindCount    kind = "number"
	kindRate     kind = "rate"     // per second
	kindSize     kind = "size"     // bytes
	kindDuration kind = "duration" //
	kindAddress  kind = "host:port"
	kindURL      kind = "url"
	kindList     kind = "list" // comma-separated
)

// parseKind checks text against kind and gives the typed value: string, bool, int64, float64, time.Duration or []string.
func parseKind(k kind, text string) (any, error) {
	switch k {
	case kindSwitch:
		v, err := strconv.ParseBool(text)
		if err != nil {
			return nil, fmt.Errorf("%q is neither true nor false", text)
		}
		return v, nil
	case kindCount:
		v, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%q is not a whole number", text)
		}
		return v, nil
	case kindRate:
		v, err := strconv.ParseFloat(text, 64)
		if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, fmt.Errorf("%q is not a number", text)
		}
		return v, nil
	case kindSize:
		return parseSize(text)
	case kindDuration:
		return parseDuration(text)
	case kindAddress:
		return parseAddress(text)
	case kindList:
		return splitList(text), nil
	}
	return text, nil
}

// sizeUnits are the units of sizes, the longest first.
var sizeUnits = []struct {
	name  string
	bytes int64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1},
}

// parseSize reads a size in bytes: 8MiB, 64KiB, 1.5GiB, 500MB, 1048576.
func parseSize(text string) (int64, error) {
	number, unit := strings.TrimSpace(text), int64(1)
	for _, u := range sizeUnits {
		if n, ok := strings.CutSuffix(strings.ToLower(number), strings.ToLower(u.name)); ok {
			number, unit = strings.TrimSpace(n), u.bytes
			break
		}
	}
	if n, err := strconv.ParseInt(number, 10, 64); err == nil {
		if n < 0 || n > math.MaxInt64/unit {
			return 0, fmt.Errorf("%q is out of range", text)
		}
		return n * unit, nil
	}
	f, err := strconv.ParseFloat(number, 64)
	if err != nil || math.IsNaN(f) || unit == 1 || strings.ContainsAny(number, "eExXpP_") {
		return 0, fmt.Errorf("%q is not a size; write it like 8MiB, 64KiB or 1048576", text)
	}
	if f *= float64(unit); f < 0 || f >= math.MaxInt64 {
		return 0, fmt.Errorf("%q is out of range", text)
	}
	return int64(f), nil
}

// formatSize is a size in the largest unit that divides it.
func formatSize(n int64) string {
	for i := 3; i >= 0; i-- {
		if u := sizeUnits[i]; n >= u.bytes && n%u.bytes == 0 {
			return strconv.FormatInt(n/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}

// parseDuration reads a duration: 250ms, 2s, 1h30m, 7d, 0.
func parseDuration(text string) (time.Duration, error) {
	text = strings.TrimSpace(text)
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, err := strconv.ParseInt(days, 10, 32)
		if err == nil && n >= 0 {
			return time.Duration(n) * 24 * time.Hour, nil
		}
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("%q is not a duration; write it like 250ms, 2s, 1h or 7d", text)
	}
	if d < 0 {
		return 0, fmt.Errorf("%q is negative", text)
	}
	return d, nil
}

// parseAddress checks host:port; the host may be empty.
func parseAddress(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	_, port, err := net.SplitHostPort(text)
	if err != nil {
		return "", fmt.Errorf("%q is not host:port", text)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "", fmt.Errorf("%q: port %q is not a number from 0 to 65535", text, port)
	} else if n > math.MaxUint16 {
		return "", fmt.Errorf("%q: port is out of range", text)
	}
	return text, nil
}

// splitList splits a comma-separated list; blanks and empty parts go.
func splitList(text string) []string {
	var out []string
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part != "" && !slices.Contains(out, part) {
			out = append(out, part)
		}
	}
	return out
}
