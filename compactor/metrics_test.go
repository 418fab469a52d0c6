package compactor

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// TestJobAges: every job has an age, from the start on; one that fails gets older.
func TestJobAges(t *testing.T) {
	r := newRig(t, 1, nil)
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewRegistry()
		c, err := New(Options{Holder: "x", Driver: r.driver, Store: r.store, Bucket: r.bucket, Registerer: reg})
		if err != nil {
			t.Fatal(err)
		}
		age := func() map[string]float64 {
			families, err := reg.Gather()
			if err != nil {
				t.Fatal(err)
			}
			ages := map[string]float64{}
			for _, f := range families {
				if f.GetName() == "skein_compactor_job_age_seconds" {
					for _, m := range f.GetMetric() {
						ages[m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
					}
				}
			}
			return ages
		}
		time.Sleep(time.Minute)
		ages := age()
		for _, j := range c.jobs() {
			if ages[j.name] != 60 || !slices.Contains(jobNames(), j.name) {
				t.Errorf("%s has the age %v", j.name, ages[j.name])
			}
		}
		c.work(t.Context(), job{name: jobTidy, run: func(context.Context) error { return nil }})
		c.work(t.Context(), job{name: jobClean, run: func(context.Context) error { return errors.New("no") }})
		time.Sleep(time.Second)
		if ages = age(); ages[jobTidy] != 1 || ages[jobClean] != 61 {
			t.Errorf("%v", ages)
		}
	})
}
