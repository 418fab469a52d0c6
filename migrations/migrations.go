// Package migrations embeds the schema of the metadata database, one folder of SQL files for each kind of database. It
// executes nothing: the drivers do.
package migrations

import (
	"embed"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
)

//go:embed sqlite/*.sql
var sqliteFiles embed.FS

//go:embed postgres/*.sql
var postgresFiles embed.FS

// Migration is one step of the schema.
type Migration struct {
	Version int    // dense from 1
	Name    string // what follows the number in the file's name
	SQL     string
}

// SQLite gives the steps for SQLite, by version.
func SQLite() ([]Migration, error) { return load(sqliteFiles, "sqlite") }

// Postgres gives the steps for Postgres, by version.
func Postgres() ([]Migration, error) { return load(postgresFiles, "postgres") }

// load reads files named NNNN_name.sql.
func load(files fs.FS, folder string) ([]Migration, error) {
	entries, err := fs.ReadDir(files, folder)
	if err != nil {
		return nil, fmt.Errorf("migrations: %w", err)
	}
	steps := make([]Migration, 0, len(entries))
	for i, e := range entries { // by name
		number, name, ok := strings.Cut(strings.TrimSuffix(e.Name(), ".sql"), "_")
		version, err := strconv.Atoi(number)
		if !ok || err != nil || version != i+1 {
			return nil, fmt.Errorf("migrations: %s/%s is not number %d", folder, e.Name(), i+1)
		}
		text, err := fs.ReadFile(files, path.Join(folder, e.Name()))
		if err != nil {
			return nil, fmt.Errorf("migrations: %w", err)
		}
		steps = append(steps, Migration{Version: version, Name: name, SQL: string(text)})
	}
	return steps, nil
}
