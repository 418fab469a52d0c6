package metadata

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &clock{}
		if now, ok := c.now(); ok {
			t.Fatalf("%d before the first reading", now)
		}
		check := func(what string, want Millis) {
			t.Helper()
			if now, ok := c.now(); !ok || now != want {
				t.Fatalf("%s: %d, want %d", what, now, want)
			}
		}
		const second = 1000
		c.saw(1_000_000)
		check("the first reading", 1_000_000)
		time.Sleep(time.Second)
		check("a second later", 1_001_000)
		c.saw(1_001_000 - 400)
		check("a reading that was 400 ms on its way", 1_001_000)
		c.saw(1_001_000 + 300)
		check("one that was faster than the first", 1_001_300)
		time.Sleep(clockAnchor - 1)
		c.saw(1_001_300 + 29_999 - 5)
		check("drift is not corrected before its time", 1_001_300+29_999)
		time.Sleep(time.Nanosecond)
		c.saw(1_031_300 - 5)
		check("then it is, but time does not go back", 1_031_300-1)
		time.Sleep(10 * time.Millisecond)
		check("and goes on from the reading", 1_031_300+5)
		c.saw(1_031_305 - 60*second)
		check("the database's clock stepped back", 1_031_305-60*second)
	})
}
