package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
)

// groupReport is what a run of the groups' scenario proved.
type groupReport struct {
	Groups     int          `json:"groups"`
	Members    int          `json:"members"`
	Records    int64        `json:"records"` // produced; every group reads each
	Lost       int64        `json:"lost"`
	Repeated   int          `json:"repeated"`
	Rebalances int32        `json:"rebalances"` // without those of outages in which sessions end on the clients' side
	Faults     []groupFault `json:"faults"`
}

// groupFault is one step as it ran.
type groupFault struct {
	Name string `json:"name"`
	// Rebalances is by how much the groups' generations rose, until after the next rest. Moved is how many partitions
	// were taken from a member.
	Rebalances int32 `json:"rebalances"`
	Moved      int   `json:"partitions_moved"`
	// ProgressMS is how long after the fault, or where something was out of reach after its end, every member had read a
	// record that was made after it; SinceBeganMS the same from the fault's beginning.
	ProgressMS   int64 `json:"progress_ms"`
	SinceBeganMS int64 `json:"since_began_ms"`
}

// finish prints the report and says whether it is as it must be.
func (r *groupReport) finish(o *options) error {
	if o.out == "json" {
		enc := json.NewEncoder(os.Stdout)
		enc.SetIndent("", "  ")
		if err := enc.Encode(r); err != nil {
			return err
		}
	} else {
		r.print(os.Stdout)
	}
	if r.Lost > 0 || r.Rebalances > 0 || r.Records == 0 {
		return errors.New("groups rebalanced, or missed records")
	}
	return nil
}

func (r *groupReport) print(w io.Writer) {
	fmt.Fprintf(w, "%d groups, %d members, %d records: lost %d, read again %d, rebalances while sessions last %d\n",
		r.Groups, r.Members, r.Records, r.Lost, r.Repeated, r.Rebalances)
	t := tabwriter.NewWriter(w, 2, 8, 2, ' ', 0)
	fmt.Fprintln(t, "fault\trebalances\tpartitions moved\tall members read on after\tfrom its beginning")
	for _, f := range r.Faults {
		fmt.Fprintf(t, "%s\t%d\t%d\t%d ms\t%d ms\n", f.Name, f.Rebalances, f.Moved, f.ProgressMS, f.SinceBeganMS)
	}
	_ = t.Flush() // to stdout
}
