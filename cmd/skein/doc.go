// Command skein is the whole of Skein in one binary: the servers (dev, agent), the schema migration, and the clients
// (topic, produce, consume, segment, bench).
//
// It is the only place that reads flags, environment variables, configuration files and signals; everything below it
// gets typed configuration. Every option of the servers stands in one table (options.go), from which the flags, the
// keys of the configuration file, the environment variables, --print-config and the table in docs/OPERATIONS.md come.
package main
