# make help says what there is.
GO      ?= go
FUZZ    ?= 5s
RUNS    ?= 50
LOAD    ?= 20s
MEMBERS ?= 50
RTT     ?= 0s
STORM   ?= 10000,200,5
ROOT    := $(shell [ "$$(id -u)" = 0 ] && [ "$$(uname)" = Linux ] && echo yes)
TARGETS := linux/amd64 linux/arm64 linux/arm darwin/amd64 darwin/arm64 windows/amd64 freebsd/amd64 android/arm64
# Of those that differ by the processor alone one is vetted; of Linux, where all else is
# compiled anyway, the one with 32 bits.
VETTED  := linux/arm darwin/arm64 windows/amd64 freebsd/amd64 android/arm64
LINT    := $(GO) tool -modfile=tools/go.mod

.PHONY: help build demo test race fuzz models screens bench files-large natmatrix roam rendezvous-matrix doctor-matrix room-bench chat-storm hubload cross lint deps
help: ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 10

build: ## build ./kith
	$(GO) build -trimpath -o kith ./cmd/kith

demo: ## two devices on this machine, from pairing to unpairing
	$(GO) run ./cmd/kith demo

deps: ## as root on Debian: install what the network tests need
	@if [ "$(ROOT)" = yes ] && command -v apt-get >/dev/null; then \
		missing=""; \
		command -v mosquitto >/dev/null || missing="$$missing mosquitto"; \
		command -v spin >/dev/null || missing="$$missing spin"; \
		command -v nft >/dev/null || missing="$$missing nftables"; \
		command -v ip >/dev/null || missing="$$missing iproute2"; \
		command -v avahi-daemon >/dev/null || missing="$$missing avahi-daemon"; \
		command -v miniupnpd >/dev/null || missing="$$missing miniupnpd-nftables"; \
		command -v turnserver >/dev/null || missing="$$missing coturn"; \
		command -v etcd >/dev/null || missing="$$missing etcd-server"; \
		command -v named >/dev/null || missing="$$missing bind9"; \
		command -v unbound >/dev/null || missing="$$missing unbound"; \
		command -v gcc >/dev/null || missing="$$missing gcc libc6-dev"; \
		command -v tmux >/dev/null || missing="$$missing tmux"; \
		command -v curl >/dev/null || missing="$$missing curl"; \
		if [ -n "$$missing" ]; then \
			echo "installing:$$missing"; \
			export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1; \
			apt-get -qq update && apt-get -qq install -y --no-install-recommends $$missing >/dev/null; \
		fi; \
	fi

test: deps ## every test that this machine allows, and what was skipped
	{ $(GO) test -shuffle=on -timeout 14m -json ./...; \
	  cd rendezvous/etcd && $(GO) test -shuffle=on -timeout 5m -json ./...; } | $(GO) run ./internal/testreport

# Three packages at a time: the tests of the root mostly wait.
race: deps ## the same with the race detector, which is slow: with -short
	{ $(GO) test -race -short -p 3 -shuffle=on -timeout 25m -json ./...; \
	  cd rendezvous/etcd && $(GO) test -race -short -shuffle=on -timeout 5m -json ./...; } | $(GO) run ./internal/testreport

fuzz: ## each fuzz target for FUZZ (5s), as many at a time as there are cores
	$(GO) run ./internal/fuzzall $(FUZZ)

screens: deps ## what the chat looks like on a terminal; writes docs/chat-screen.md
	KITH_CHAT_SCREENS=$(CURDIR)/docs/chat-screen.md $(GO) test -count=1 -run '^TestChatScreen$$' -v ./internal/cli

models: deps ## the SPIN models of the commit phase
	$(GO) test -count=1 -v ./models

bench: deps ## benchmarks; the data path's needs root on Linux
	$(GO) test -run '^$$' -bench . -benchmem ./...
	$(GO) run ./internal/bench
	$(GO) run ./internal/bench uses

files-large: ## a million files, and one of 100 GB with holes, in memory (/dev/shm)
	KITH_FILES_LARGE=1 $(GO) test -count=1 -timeout 20m -run '^(TestManyFiles|TestLongFile)$$' -v ./app/files

natmatrix: deps ## every pair of NATs RUNS (50) times, as root; writes docs/natmatrix.md
	KITH_NATMATRIX=$(RUNS) KITH_NATMATRIX_FILE=docs/natmatrix.md $(GO) test -count=1 -timeout 3h -run '^TestNATMatrix$$' -v .

rendezvous-matrix: deps ## each medium alone and all together RUNS (20) times, as root; prints and writes docs/rendezvous.md
	KITH_MEET=$(if $(filter file,$(origin RUNS)),20,$(RUNS)) KITH_MEET_FILE=docs/rendezvous.md $(GO) test -count=1 -timeout 3h -run '^TestMeetMatrix$$' -v .

roam: ## each change of the network RUNS (20) times, as root; writes docs/roaming.md
	KITH_ROAM=$(if $(filter file,$(origin RUNS)),20,$(RUNS)) KITH_ROAM_FILE=docs/roaming.md $(GO) test -count=1 -timeout 3h -run '^TestRoamTable$$' -v .

doctor-matrix: deps ## kith doctor on every broken and healthy network, as root; writes docs/doctor-matrix.md
	KITH_DOCTOR_MATRIX=1 KITH_DOCTOR_MATRIX_FILE=docs/doctor-matrix.md $(GO) test -count=1 -parallel 4 -timeout 1h -run '^(TestDoctorMatrix|TestNetworkDiagnoseNAT|TestNetworkMostLikely)$$' -v .

room-bench: deps ## a room of MEMBERS (50) processes, RTT (0s) apart, and RUNS (20) devices that enter one, as root
	KITH_ROOM_RTT=$(RTT) KITH_ROOM_BENCH=$(MEMBERS) KITH_ROOM_FIRST=$(if $(filter file,$(origin RUNS)),20,$(RUNS)) $(GO) test -count=1 -parallel 4 -timeout 1h -run '^(TestNetworkCrowd|TestNetworkFirstLine)$$' -v .

chat-storm: deps ## 10,000 lines of chat with 200 kills and 5 moves, or STORM (LINES,KILLS,MOVES), as root
	KITH_CHAT_STORM=$(STORM) $(GO) test -count=1 -timeout 30m -run '^TestNetworkChat$$' -v .

hubload: ## 10,000 clients and 200 relayed flows on one hub, for LOAD (20s)
	KITH_HUB_LOAD=$(LOAD) $(GO) test -count=1 -timeout 10m -run '^TestLoad$$' -v ./hub

# Android's flag lets the interface list of a dependency (wlynxg/anet) reach into
# package net: apps there may not ask netlink, and the standard library does.
cross: ## build for every platform, and vet what differs
	@for t in $(TARGETS); do \
		echo "build $$t"; \
		flags=""; case $$t in android/*) flags="-ldflags=-checklinkname=0";; esac; \
		CGO_ENABLED=0 GOOS=$${t%/*} GOARCH=$${t#*/} $(GO) build $$flags -o /dev/null ./cmd/kith || exit 1; \
		case " $(VETTED) " in *" $$t "*) \
			CGO_ENABLED=0 GOOS=$${t%/*} GOARCH=$${t#*/} $(GO) vet -unsafeptr=false ./... || exit 1;; \
		esac; \
	done

lint: ## golangci-lint with the reasons in .golangci.yml (compiles for minutes at first)
	$(LINT) golangci-lint run ./...
