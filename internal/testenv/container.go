package testenv

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"
)

// Images of the servers, for machines that have a Docker engine and no binaries. Containers are
// removed by testcontainers' reaper when the test process is gone.
const (
	postgresImage = "postgres:17-alpine"
	minioImage    = "minio/minio:RELEASE.2025-04-22T22-12-26Z"
)

// dockerProbeTimeout bounds the question whether there is a Docker engine.
const dockerProbeTimeout = 5 * time.Second

// dockerAnswers tells whether there is a Docker engine.
func dockerAnswers() (err error) {
	// Looking for an engine panics in some versions when none is configured.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
	}()
	provider, err := testcontainers.NewDockerProvider()
	if err != nil {
		return err
	}
	defer provider.Close()
	ctx, cancel := context.WithTimeout(context.Background(), dockerProbeTimeout)
	defer cancel()
	return provider.Health(ctx)
}

// containerPostgres starts the shared server in a container; missing is why there is no binary.
func containerPostgres(missing error) (*PostgresServer, error) {
	if err := dockerAnswers(); err != nil {
		return nil, fmt.Errorf("%w; nor does a Docker engine answer: %w", missing, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	password := rand.Text()
	c, err := testcontainers.Run(ctx, postgresImage,
		testcontainers.WithEnv(map[string]string{"POSTGRES_PASSWORD": password}),
		testcontainers.WithExposedPorts("5432/tcp"),
		testcontainers.WithCmd("postgres", "-c", fmt.Sprintf("max_connections=%d", postgresConnections)),
		// The first start is initdb's own, on the socket only.
		testcontainers.WithWaitStrategyAndDeadline(startTimeout,
			wait.ForLog("database system is ready to accept connections").WithOccurrence(2), wait.ForListeningPort("5432/tcp")),
	)
	if err != nil {
		return nil, fmt.Errorf("start Postgres in a container: %w", err)
	}
	endpoint, err := c.PortEndpoint(ctx, "5432/tcp", "")
	if err != nil {
		return nil, fmt.Errorf("find the port of Postgres in its container: %w", err)
	}
	return &PostgresServer{
		url: &url.URL{Scheme: "postgres", User: url.UserPassword("postgres", password), Host: endpoint, Path: "/postgres", RawQuery: "sslmode=disable"},
		sql: func(ctx context.Context, statement string) error {
			code, out, err := c.Exec(ctx, []string{"psql", "-X", "-q", "-U", "postgres", "-v", "ON_ERROR_STOP=1", "-c", statement})
			if err != nil {
				return fmt.Errorf("psql %q in the container: %w", statement, err)
			}
			if code != 0 {
				text, err := io.ReadAll(out)
				return errors.Join(fmt.Errorf("psql %q in the container: exit status %d: %s", statement, code, strings.TrimSpace(string(text))), err)
			}
			return nil
		},
	}, nil
}

// containerMinIO starts the shared server in a container; missing is why there is no binary.
func containerMinIO(missing error) (*MinIOServer, error) {
	if err := dockerAnswers(); err != nil {
		return nil, fmt.Errorf("%w; nor does a Docker engine answer: %w", missing, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	s := &MinIOServer{AccessKey: "skeintest", SecretKey: rand.Text()}
	c, err := testcontainers.Run(ctx, minioImage,
		testcontainers.WithEnv(map[string]string{"MINIO_ROOT_USER": s.AccessKey, "MINIO_ROOT_PASSWORD": s.SecretKey, "MINIO_REGION": MinIORegion}),
		testcontainers.WithExposedPorts("9000/tcp"),
		testcontainers.WithCmd("server", "/data"),
		testcontainers.WithWaitStrategyAndDeadline(startTimeout, wait.ForHTTP("/minio/health/ready").WithPort("9000/tcp")),
	)
	if err != nil {
		return nil, fmt.Errorf("start MinIO in a container: %w", err)
	}
	if s.Endpoint, err = c.PortEndpoint(ctx, "9000/tcp", ""); err != nil {
		return nil, fmt.Errorf("find the port of MinIO in its container: %w", err)
	}
	return s, nil
}
