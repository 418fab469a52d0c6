package main

import "github.com/skeinio/skein/agent/group"

// groupSettings reads the group-… options.
func groupSettings(s *settings) group.Settings {
	g := group.Defaults()
	g.InitialDelay = s.dur("group-initial-rebalance-delay")
	g.MinSession, g.MaxSession = s.dur("group-min-session-timeout"), s.dur("group-max-session-timeout")
	g.MaxSize = s.count("group-max-size")
	g.ConsumerHeartbeat, g.ConsumerSession = s.dur("group-consumer-heartbeat-interval"), s.dur("group-consumer-session-timeout")
	return g
}
