package agent

// MemoryBound is the sum of the bounds of what a Server with this configuration pins, in bytes: requests, what is decoded
// and rewritten of them, and responses. Connections' own buffers are not in it.
func (c Config) MemoryBound() int64 {
	c = c.withDefaults()
	return c.ProduceBufferBytes + c.ProduceBufferBytes/rewrittenDivisor + otherFramesBytes + decodedBytes + responsesBytes +
		fetchBytes + coldFetchBytes
}
