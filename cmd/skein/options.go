package main

import (
	"fmt"
	"slices"
	"strings"
)

// scope says which commands take an option.
type scope uint8

const (
	inDev scope = 1 << iota
	inAgent
	inMigrate
	inClient   // whatever talks to agents
	inDatabase // clients of a database

	inServers = inDev | inAgent
)

// option is one row of the table that flags, configuration keys, environment variables and documentation are made of.
type option struct {
	name    string
	kind    kind
	byDef   string // default, as it would be written; "" is none
	devDef  string // of `skein dev`, where it differs
	scope   scope
	help    string
	choices []string // allowed values, where these are few
	// required in `skein agent` and `skein migrate`; with a role only in an agent that has it.
	required bool
	role     string
	// flagOnly options are no keys of the configuration file; envToo of them have a variable all the same.
	flagOnly, envToo bool
	// minimum and maximum bound numbers, sizes and durations (in their own unit: bytes, nanoseconds); maximum 0 is none.
	minimum, maximum int64
}

// env is the option's environment variable.
func (o *option) env() string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(o.name, "-", "_"))
}

// envPrefix starts every environment variable of ours.
const envPrefix = "SKEIN_"

// defaultFor is the option's default in the command of that scope.
func (o *option) defaultFor(s scope) string {
	if s == inDev && o.devDef != "" {
		return o.devDef
	}
	return o.byDef
}

// hasEnv says whether the option has an environment variable.
func (o *option) hasEnv() bool { return !o.flagOnly || o.envToo }

// parse checks text and gives the typed value.
func (o *option) parse(text string) (any, error) {
	v, err := parseKind(o.kind, text)
	if err != nil {
		return nil, err
	}
	if len(o.choices) > 0 {
		values, isList := v.([]string)
		if !isList {
			values = []string{text}
		}
		for _, x := range values {
			if !slices.Contains(o.choices, x) {
				return nil, fmt.Errorf("%q is not one of %s", x, strings.Join(o.choices, ", "))
			}
		}
	}
	return v, o.bound(v)
}

// bound checks minimum and maximum.
func (o *option) bound(v any) error {
	n, ok := integer(v)
	if !ok {
		return nil
	}
	if n < o.minimum {
		return fmt.Errorf("%s is below the least, %s", o.format(n), o.format(o.minimum))
	}
	if o.maximum > 0 && n > o.maximum {
		return fmt.Errorf("%s is above the most, %s", o.format(n), o.format(o.maximum))
	}
	return nil
}

// The table. Its order is that of --help's groups, --print-config and the documentation.
func optionTable() []option {
	return slices.Concat(placeOptions(), writeOptions(), readOptions(), serverOptions(), compactorOptions(),
		groupOptions(), processOptions(), clientOptions())
}

func placeOptions() []option {
	return []option{
		{name: "config", kind: kindString, scope: inServers | inMigrate, flagOnly: true, envToo: true,
			help: "configuration file (YAML): the options of this table as keys"},
		{name: "listen", kind: kindAddress, devDef: "127.0.0.1:9092", scope: inServers, required: true, role: roleProxy,
			help: "address of the Kafka protocol"},
		{name: "advertise", kind: kindAddress, scope: inServers, required: true, role: roleProxy,
			help: "address that clients are told to connect to: the load balancer's; `dev`: that of --listen"},
		{name: "http", kind: kindAddress, devDef: "127.0.0.1:9090", scope: inServers, required: true,
			help: "address of /live, /ready and /metrics"},
		{name: "data", kind: kindString, devDef: "./skein-data", scope: inDev,
			help: "folder of the embedded database and the bucket"},
		{name: "metadata", kind: kindURL, scope: inAgent | inMigrate | inDatabase, required: true,
			help: "database: postgres://user@host:port/db?…, sqlite:///abs/path.db or sqlite:rel/path.db"},
		{name: "bucket", kind: kindURL, scope: inAgent, required: true,
			help: "bucket: s3://bucket/prefix?…, minio://host:port/bucket/prefix?…, file:///abs/dir, file:rel/dir or mem:"},
		{name: "create-bucket", kind: kindSwitch, byDef: "false", scope: inAgent,
			help: "create the bucket when it is missing; `dev` always does"},
		{name: "topology", kind: kindString, byDef: "virtual", scope: inAgent, choices: []string{"virtual", topologyDirect},
			help: "virtual: all agents are one broker behind one address; direct: every agent is a broker"},
		{name: "zone", kind: kindString, scope: inServers, help: "availability zone of the agent, shown to clients as its rack"},
		{name: "roles", kind: kindList, byDef: "proxy,compactor", scope: inAgent, choices: []string{roleProxy, roleCompactor},
			help: "what the agent does: serve clients, merge and clean up; without proxy there is no Kafka listener, and listen and advertise are not needed"},
		{name: "node-id", kind: kindCount, byDef: "0", scope: inServers, maximum: 1<<31 - 1,
			help: "broker id; with topology virtual the same on every agent, with direct another on each, 0 to have one found and kept"},
		{name: "listeners", kind: kindList, scope: inAgent,
			help: "further listeners, name=host:port, for instance for clients outside of the network"},
		{name: "advertised-listeners", kind: kindList, scope: inAgent,
			help: "name=host:port that clients of each of --listeners are told to connect to"},
		{name: "proxy-protocol", kind: kindSwitch, byDef: "false", scope: inAgent,
			help: "expect the PROXY protocol's header, version 2, on every connection: the load balancer must send it"},
	}
}

func writeOptions() []option {
	return []option{
		{name: "linger", kind: kindDuration, byDef: "250ms", scope: inServers, maximum: maxLinger,
			help: "the longest that a record waits for others before its flush"},
		{name: "segment-bytes", kind: kindSize, byDef: "8MiB", scope: inServers, minimum: minSegmentBytes, maximum: maxSegmentBytes,
			help: "a flush of this many bytes does not wait for more"},
		{name: "put-budget", kind: kindRate, byDef: "8", devDef: "0", scope: inServers,
			help: "PUTs per second that an agent may average; 0: no limit"},
		{name: "commit-budget", kind: kindRate, byDef: "50", scope: inServers,
			help: "commits per second that an agent may average; 0: no limit"},
		{name: "inline-max-bytes", kind: kindSize, byDef: "64KiB", scope: inServers, maximum: maxInlineBytes,
			help: "a flush smaller than this goes into the database instead of the bucket; 0: none does"},
		{name: "inline-bytes-per-second", kind: kindSize, byDef: "1MiB", scope: inServers,
			help: "inline bytes per second that an agent may average; over it flushes become PUTs"},
		{name: "inline-resident-bytes", kind: kindSize, byDef: "256MiB", scope: inServers,
			help: "inline bytes of the whole cluster in the database; over it flushes become PUTs"},
		{name: "sequence-hold", kind: kindDuration, byDef: "2s", scope: inServers, maximum: maxSequenceHold,
			help: "how long a batch that arrived ahead of its producer's earlier ones is held for them"},
		{name: "produce-buffer-bytes", kind: kindSize, byDef: "256MiB", scope: inServers, minimum: minProduceBuffer,
			help: "memory of records that are not committed yet; over it producers are read more slowly"},
		{name: "compression", kind: kindString, byDef: "auto", scope: inServers, choices: []string{"auto", "none", "zstd"},
			help: "of what producers sent uncompressed, in segments: where a sample says it pays, never, or always"},
		{name: "uploads", kind: kindCount, byDef: "8", scope: inServers, minimum: 1, maximum: maxUploads,
			help: "segments uploaded at a time"},
		{name: "hedge", kind: kindSwitch, byDef: "true", scope: inServers,
			help: "upload again, under a second key, what takes longer than most uploads do"},
	}
}

func readOptions() []option {
	return []option{
		{name: "cache-bytes", kind: kindSize, byDef: "512MiB", scope: inServers, minimum: minCacheBytes,
			help: "memory of the read cache"},
		{name: "cache-dir", kind: kindString, scope: inServers,
			help: "folder of the cache's disk tier, which this process alone uses and which may be removed at any time; empty: none"},
		{name: "cache-disk-bytes", kind: kindSize, byDef: "0", scope: inServers,
			help: "most bytes of the cache's disk tier, from 64MiB; with cache-dir"},
	}
}

func serverOptions() []option {
	return []option{
		{name: "max-request-bytes", kind: kindSize, byDef: "100MiB", scope: inServers, minimum: minRequestBytes, maximum: maxRequestBytes,
			help: "largest Produce request (other requests: 1MiB); larger ones close their connection"},
		{name: "max-connections", kind: kindCount, byDef: "10000", scope: inServers, minimum: 1,
			help: "connections at a time"},
		{name: "max-connection-age", kind: kindDuration, byDef: "30m", devDef: "0", scope: inServers,
			help: "connections are closed, between requests, at about this age, so that new agents get traffic; 0: never"},
		{name: "auto-create-topics", kind: kindSwitch, byDef: "true", scope: inServers,
			help: "create a topic when a client asks for its metadata and allows it"},
		{name: "default-partitions", kind: kindCount, byDef: "1", scope: inServers, minimum: 1, maximum: maxDefaultPartitions,
			help: "partitions of a topic whose creator did not say (num.partitions)"},
		{name: "drain-timeout", kind: kindDuration, byDef: "30s", scope: inServers,
			help: "how long a stop may take to answer what waits"},
	}
}

func compactorOptions() []option {
	return []option{
		{name: "compaction-interval", kind: kindDuration, byDef: "10s", scope: inServers, minimum: minCompactionInterval,
			help: "how often the compactor looks for work"},
		{name: "compaction-bytes-per-second", kind: kindSize, byDef: "64MiB", scope: inServers,
			help: "what an agent's compactor reads and writes in a second at most, unless merging is far behind; 0: no limit"},
		{name: "max-unmerged", kind: kindCount, byDef: "50000", scope: inServers,
			help: "level-0 rows of a block over which producers are slowed; 0: never"},
		{name: "gc-grace", kind: kindDuration, byDef: "1h", scope: inServers, minimum: minGCGrace,
			help: "how old garbage must be to be deleted; must exceed the window into which a backup may be restored"},
	}
}

func groupOptions() []option {
	return []option{
		{name: "group-initial-rebalance-delay", kind: kindDuration, byDef: "3s", scope: inServers,
			help: "how long an empty group waits for more members"},
		{name: "group-min-session-timeout", kind: kindDuration, byDef: "6s", scope: inServers,
			help: "shortest session timeout that a member may ask for"},
		{name: "group-max-session-timeout", kind: kindDuration, byDef: "30m", scope: inServers,
			help: "longest session timeout that a member may ask for"},
		{name: "group-max-size", kind: kindCount, byDef: "2147483647", scope: inServers,
			help: "members of a group"},
		{name: "group-consumer-heartbeat-interval", kind: kindDuration, byDef: "5s", scope: inServers,
			help: "heartbeat interval of KIP-848 groups"},
		{name: "group-consumer-session-timeout", kind: kindDuration, byDef: "45s", scope: inServers,
			help: "session timeout of KIP-848 groups"},
	}
}

func processOptions() []option {
	return []option{
		{name: "log-format", kind: kindString, byDef: "text", scope: inServers | inMigrate, choices: []string{"text", "json"},
			help: "format of the log on stderr"},
		{name: "log-level", kind: kindString, byDef: "info", scope: inServers | inMigrate,
			choices: []string{"debug", "info", "warn", "error"}, help: "least level that is logged"},
		{name: "print-config", kind: kindSwitch, byDef: "false", scope: inServers | inMigrate, flagOnly: true,
			help: "print the effective configuration with the source of every value, and exit"},
	}
}

func clientOptions() []option {
	return []option{
		{name: "bootstrap", kind: kindList, byDef: "127.0.0.1:9092", scope: inClient, flagOnly: true, envToo: true,
			help: "agents to connect to, comma-separated host:port"},
	}
}

// Bounds of options, in bytes, nanoseconds or pieces.
const (
	maxLinger = int64(60e9)
	// A merge is a handful of requests for each 64 partitions: more often costs more than it saves.
	minCompactionInterval = int64(100e6)
	minGCGrace            = int64(1e9)
	minSegmentBytes       = 1 << 10
	maxSegmentBytes       = 128 << 20
	maxInlineBytes        = 1 << 20
	maxSequenceHold       = int64(30e9)
	minProduceBuffer      = 1 << 20
	maxUploads            = 256
	minCacheBytes         = 1 << 20
	minRequestBytes       = 1 << 20
	maxRequestBytes       = 1 << 30
	maxDefaultPartitions  = 100_000
)

// optionsOf are the table's rows for a command of that scope.
func optionsOf(s scope) []option {
	return slices.DeleteFunc(optionTable(), func(o option) bool { return o.scope&s == 0 })
}
