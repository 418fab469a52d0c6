package main

import (
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestTopicCommands(t *testing.T) {
	s := dev(t, t.TempDir(), "--default-partitions=2")
	mustSkein(t, nil, s.flags("topic", "create", "b", "-p", "3", "-c", "cleanup.policy=compact", "-c", "max.message.bytes=5000")...)
	mustSkein(t, nil, s.flags("topic", "create", "a")...)
	mustSkein(t, nil, s.flags("topic", "create", "a", "--if-not-exists")...)

	var list []topicLine
	decode(t, mustSkein(t, nil, s.flags("topic", "list", "-o", "json")...), &list)
	if len(list) != 2 || list[0].Name != "a" || list[0].Partitions != 2 || list[1].Partitions != 3 || len(list[0].ID) != 36 {
		t.Errorf("listed %+v", list)
	}
	mustSkein(t, nil, s.flags("topic", "alter", "b", "-c", "retention.ms=5", "-d", "max.message.bytes", "-p", "4")...)
	var described []topicDescription
	decode(t, mustSkein(t, nil, s.flags("topic", "describe", "b", "-o", "json")...), &described)
	if len(described) != 1 || len(described[0].Partitions) != 4 {
		t.Fatalf("described %+v", described)
	}
	set := map[string]string{}
	for _, c := range described[0].Configs {
		if c.Source == dynamicTopicConfig {
			set[c.Key] = c.Value
		}
	}
	if len(set) != 2 || set["cleanup.policy"] != "compact" || set["retention.ms"] != "5" {
		t.Errorf("configs set on the topic are %v", set)
	}
	mustSkein(t, nil, s.flags("topic", "delete", "b")...)
	decode(t, mustSkein(t, nil, s.flags("topic", "list", "-o", "json")...), &list)
	if !slices.EqualFunc(list, []string{"a"}, func(l topicLine, name string) bool { return l.Name == name }) {
		t.Errorf("listed %+v after the deletion", list)
	}

	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"topic", "create", "a"}, "TOPIC_ALREADY_EXISTS"},
		{[]string{"topic", "create", "bad/name"}, "INVALID_TOPIC_EXCEPTION"},
		{[]string{"topic", "create", "c", "-c", "no.such.config=1"}, "INVALID_CONFIG"},
		{[]string{"topic", "delete", "nowhere"}, "UNKNOWN_TOPIC_OR_PARTITION"},
		{[]string{"topic", "describe", "nowhere"}, "UNKNOWN_TOPIC_OR_PARTITION"},
		{[]string{"topic", "alter", "a", "-p", "1"}, "INVALID_PARTITIONS"},
		{[]string{"consume", "nowhere", "--exit-at-end"}, "UNKNOWN_TOPIC_OR_PARTITION"},
		{[]string{"consume", "a", "-p", "9", "--exit-at-end"}, "has no partition 9"},
	} {
		code, _, stderr := skein(t, nil, s.flags(tt.args...)...)
		if code != exitFailed || !strings.Contains(stderr, tt.want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%v: exit %d, %q; want exit 1 and one line with %q", tt.args, code, stderr, tt.want)
		}
	}

	mustSkein(t, strings.NewReader("x\ny\nz\n"), s.flags("produce", "a")...)
	read := mustSkein(t, nil, s.flags("consume", "a", "-g", "readers", "--from", "earliest", "-n", "3")...)
	lines := strings.Fields(read)
	if slices.Sort(lines); !slices.Equal(lines, []string{"x", "y", "z"}) {
		t.Errorf("a group read %q", read)
	}
}

// TestTopicsOutliveAStop stops the server in both ways.
func TestTopicsOutliveAStop(t *testing.T) {
	data := t.TempDir()
	s := dev(t, data)
	mustSkein(t, nil, s.flags("topic", "create", "t", "-p", "3", "-c", "retention.ms=1234567")...)
	before := mustSkein(t, nil, s.flags("topic", "describe", "t", "-o", "json")...)
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		s.end(t, signal)
		s = dev(t, data)
		if after := mustSkein(t, nil, s.flags("topic", "describe", "t", "-o", "json")...); after != before {
			t.Errorf("after %v the topic is\n%s\nit was\n%s", signal, after, before)
		}
	}
}
