package agent

import (
	"context"

	"github.com/skeinio/skein/metadata"
)

// GroupStore is what the server needs of the groups' rows.
type GroupStore interface {
	OnGroups(fn func(groups []metadata.GroupVersion, all bool))
	ChangeGroup(ctx context.Context, id metadata.GroupID,
		fn func(now metadata.Millis, rows *metadata.GroupRows) (*metadata.GroupSave, error)) (int64, error)
	LoadGroups(ctx context.Context, ids ...metadata.GroupID) (metadata.Millis, []metadata.GroupRows, error)
	GroupVersions(ctx context.Context, ids []metadata.GroupID) (map[metadata.GroupID]int64, error)
	ListGroups(ctx context.Context, after metadata.GroupID, limit int) ([]metadata.GroupRow, error)
	WriteBack(ctx context.Context, w metadata.WriteBack) (*metadata.WrittenBack, error)
	SweepGroups(ctx context.Context, limit int) ([]metadata.GroupID, error)
	ForgetAgents(ctx context.Context, before metadata.Millis) error
	Did(chore metadata.Chore)
	CommitOffsets(ctx context.Context, c metadata.OffsetCommit) error
	LoadOffsets(ctx context.Context, queries []metadata.OffsetQuery) ([][]metadata.GroupOffset, error)
	DeleteOffsets(ctx context.Context, id metadata.GroupID, partitions []metadata.TopicPartition, committedBefore metadata.Millis,
		check func(now metadata.Millis, rows *metadata.GroupRows) error) error
	OldOffsets(ctx context.Context, before metadata.Millis, after metadata.GroupID, limit int) ([]metadata.GroupID, metadata.GroupID, error)
	LoadSettings(ctx context.Context) (map[string]string, error)
	ChangeSettings(ctx context.Context, decide metadata.SettingsFunc) error
}
