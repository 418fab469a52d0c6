// Package group is the rules of consumer groups as pure functions: (state, event, now) → (state, reply). It reads no clock,
// does no IO and starts nothing: the agent loads a group's rows, lets an event change them and saves what changed.
//
// Replies that must wait (a join until the rebalance is through, a sync until the leader's assignment is there) are not
// kept: whoever waits asks the state for its answer every time the group has moved (AnswerJoin, AnswerSync), so that any
// agent can serve any member, whichever agent moved the group.
//
// Two protocols: the classic one (classic*.go) and KIP-848's (consumer*.go). A group speaks one of them at a time; while
// its members are upgraded one by one, a consumer group has members that speak the classic one (convert.go).
package group
