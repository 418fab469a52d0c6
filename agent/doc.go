// Package agent is the Kafka protocol server: listener, connections, the table of APIs, and one api_*.go for each API.
//
// A connection's bytes become requests (frame.go, schema.go, produce_decode.go), the table (table.go) names each
// request's handler, and the connection (conn.go, pipeline.go) puts the replies on the wire in the order of the requests.
// Produce requests of one connection overlap; every other request waits for those before it.
//
// kmsg's types stop here: what is behind the interfaces in deps.go knows nothing of Kafka's messages. The package decides
// no offset and stores no byte.
//
// What is read here comes from outside: every length is checked against the bytes that are there before anything is
// allocated for it, and everything that a client can make the server hold has a bound (limits.go).
package agent
