package agent

import "time"

// Bounds of connections and requests. Those that are an operator's choice are in Config.
const (
	// minRequestBytes: key, version and correlation id.
	minRequestBytes = 8
	// readBufferBytes is a connection's read buffer: large enough that a small request takes one system call, small
	// enough that ten thousand idle connections are cheap. Bodies larger than it are read straight into their frame.
	readBufferBytes = 1 << 10

	// A frame must arrive at frameMinBytesPerSecond or faster but for frameTimeout; while another request waits for the
	// memory that frames take, but for framePressedTimeout: what was announced and does not come holds up those who
	// send. frameCheck is how often that is looked at. A response must be taken within writeTimeout plus its size at
	// writeMinBytesPerSecond.
	frameTimeout           = 30 * time.Second
	framePressedTimeout    = 5 * time.Second
	frameMinBytesPerSecond = 128 << 10
	frameCheck             = time.Second
	writeTimeout           = 30 * time.Second
	writeMinBytesPerSecond = 64 << 10
	// proxyHeaderTimeout is how long the header of the PROXY protocol may take.
	proxyHeaderTimeout = 5 * time.Second

	// drainFirstRequest is how long a draining agent waits for the first request of a connection.
	drainFirstRequest = time.Second

	// lingerTimeout and lingerBytes bound what is read and thrown away after the last response, so that the close does
	// not reset the connection and take the response with it.
	lingerTimeout = time.Second
	lingerBytes   = 1 << 20

	// maxPipelinedRequests, maxPipelinedBytes and maxPipelinedResponseBytes bound one connection's Produce requests that
	// were read and whose responses are not written: over any of them its reading pauses.
	maxPipelinedRequests      = 1024
	maxPipelinedBytes         = 64 << 20
	maxPipelinedResponseBytes = 4 << 20

	// responseChunkBytes: ready responses are written together up to about so much.
	responseChunkBytes = 64 << 10

	// otherFramesBytes bounds frames of requests other than Produce while they are read, decodedBytes what decoded
	// requests of all kinds take until they are answered, rewrittenDivisor the batches that had to be compressed anew
	// (a share of produce-buffer-bytes).
	otherFramesBytes = 64 << 20
	decodedBytes     = 256 << 20
	rewrittenDivisor = 4
	// responsesBytes bounds large responses other than Fetch's from before they are made until they are written.
	responsesBytes = 128 << 20
	// uncountedBytes: what is smaller is not worth counting in these pools.
	uncountedBytes = 16 << 10

	// acceptRetryMin and acceptRetryMax space out accepting after an error such as too many open files.
	acceptRetryMin = 5 * time.Millisecond
	acceptRetryMax = time.Second
)
