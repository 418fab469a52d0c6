# Skein. `make help` lists the targets.
TOOLS := $(or $(SKEIN_TOOLS),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/skein-tools)
STATICCHECK := $(TOOLS)/bin/staticcheck-v0.8.2
GOTEST := go test -timeout 20m
PKGS := ./...

TOPOLOGY ?= virtual

.PHONY: help build dev test race lint fuzz bench interop txninterop groups restore day replay chaos txnchaos groupchaos crashes backlog up down compose dbrestore tools clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## the static binary ./skein
	CGO_ENABLED=0 go build -trimpath -o skein ./cmd/skein

dev: build ## the main job: one broker on 127.0.0.1:9092, SQLite and a local folder
	./skein dev

tools: ## install what the tests need and this machine lacks (Postgres, MinIO, kcat, HAProxy)
	@scripts/tools.sh

test: tools ## set up and pass the tests, against real Postgres, real MinIO and librdkafka
	go vet $(PKGS)
	$(GOTEST) $(PKGS)

race: tools ## the tests under the race detector
	$(GOTEST) -race -short $(PKGS)

lint: ## gofmt, go vet, staticcheck, import rules
	@scripts/tools.sh lint
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); echo "gofmt -w these"; exit 1; }
	go vet $(PKGS)
	$(STATICCHECK) $(PKGS)
	go test ./internal/imports

FUZZTIME ?= 20s
fuzz: ## each fuzz test for FUZZTIME (20s)
	@scripts/fuzz.sh $(FUZZTIME)

bench: build ## produce and consume against Apache Kafka (docs/BENCHMARKS.md)
	@scripts/bench-kafka.sh

replay: build ## replay of level 0 and of runs against plain GETs, and beside producers (8 minutes)
	@scripts/bench-replay.sh

day: build ## a day of log-like data on three agents: objects, rows and requests before and after merging (6 minutes)
	@scripts/bench-day.sh

interop: build ## other people's clients: kcat and Kafka's own tools
	@scripts/tools.sh kcat
	@scripts/interop.sh

txninterop: build ## transactional clients (Java, librdkafka, franz-go, Kafka Streams) on `make up`, agents killed (12 minutes)
	@scripts/txn-interop.sh

groups: build ## other people's clients in consumer groups over three agents, both topologies, and a rolling upgrade (8 minutes)
	@scripts/groups-interop.sh

restore: build ## Kafka Streams, Kafka Connect and MirrorMaker 2 restore their state from compacted topics (8 minutes)
	@scripts/restore-interop.sh

up: build ## Postgres, MinIO, three agents and HAProxy on loopback: 127.0.0.1:19092; TOPOLOGY=direct: 19093-19095
	@TOPOLOGY=$(TOPOLOGY) scripts/up.sh

down: ## stop what `make up` started; CLEAN=1 removes its state
	@CLEAN=$(CLEAN) scripts/down.sh

chaos: build ## kill, freeze, drain and add agents, stop and freeze the stores under load; count what was lost (10 minutes)
	@TOPOLOGY=$(TOPOLOGY) scripts/chaos.sh

txnchaos: build ## chaos with transactions, connections to the database lost at COMMIT (10 minutes)
	@TOPOLOGY=$(TOPOLOGY) LOAD=txn scripts/chaos.sh

groupchaos: build ## agents killed and drained, Postgres restarted and frozen, under 20 consumer groups (9 minutes)
	@TOPOLOGY=$(TOPOLOGY) SCENARIO=groups CLIENTS=franz scripts/chaos.sh -rate 100

CRASH_ROUNDS ?= 2000
crashes: ## compactors that die at random steps, for long; CRASH_ROUNDS (2000), and CRASH_SEED to see one again
	$(GOTEST) ./compactor -run TestRandomCrashes -v -crash-rounds $(CRASH_ROUNDS) -crash-seed $(or $(CRASH_SEED),0)

backlog: build ## producers while no compactor runs, and while one drains what that left (10 minutes)
	@scripts/backlog.sh

compose: ## check docker-compose.yml and the image's contents, without Docker
	@scripts/compose.sh

dbrestore: build ## restore an older state of Postgres beside a newer bucket, as docs/OPERATIONS.md says
	@scripts/dbrestore.sh

clean: ## remove what was built
	rm -f skein
