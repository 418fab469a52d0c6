package agent

import "context"

// loadSettings takes over the cluster-wide settings of groups.
func (gs *groups) loadSettings(ctx context.Context) {
}
