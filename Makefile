# Two commands: `make run` starts a Kubernetes control plane, `make test` proves that it works.
#
# Nothing is compiled into the checkout: cargo's output and the upstream binaries go to the user's cache directory, where
# another clone of this repository finds them again.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.NOTPARALLEL:

CACHE_HOME := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)
export K0S_CACHE_DIR ?= $(CACHE_HOME)/k0s-rs
export CARGO_TARGET_DIR ?= $(K0S_CACHE_DIR)/target
RELEASE := $(CARGO_TARGET_DIR)/release

# make run: where the cluster's state lives, and a directory with kube-apiserver & co. to use instead of compiling them.
DATA_DIR ?= $(CURDIR)/.run
BIN_DIR ?=
# More arguments for `k0s controller`.
ARGS ?=
# How long each fuzz target runs: in make fuzz, and in make test.
FUZZ_SECONDS ?= 20
FUZZ_TEST_SECONDS ?= 15

# cargo-deny is compiled once, into the cache.
CARGO_DENY_VERSION := 0.20.2
CARGO_DENY_ROOT := $(K0S_CACHE_DIR)/tools/cargo-deny-$(CARGO_DENY_VERSION)

.PHONY: help run build test check mine lint deny unit fuzz upstream bench

help:
	@echo "make run     build what is missing and run a control plane in the foreground (DATA_DIR=, BIN_DIR=, ARGS=)"
	echo "make test    everything CI runs"
	echo "make build   k0s and kine, release profile, into $(RELEASE)"
	echo "make bench   compare with real etcd and kine; takes an hour (a look: make bench ARGS=--quick)"

run: mine
	@xtask/prerequisites.sh rust gcc $(if $(BIN_DIR),,go)
	bin_dir="$(BIN_DIR)"
	[ -n "$$bin_dir" ] || bin_dir=$$(cargo xtask kubernetes)
	cargo build --locked --release --package controller --bin k0s
	exec "$(RELEASE)/k0s" controller --storage=sqlite --data-dir "$(DATA_DIR)" --bin-dir "$$bin_dir" $(ARGS)

# Cargo tells by a file's time whether it changed, and all clones share one target directory: what another clone built last
# may be newer than a file that is different here. The first build after another clone's takes every file for changed.
mine:
	@mkdir -p "$(CARGO_TARGET_DIR)"
	if [ "$$(cat "$(CARGO_TARGET_DIR)/checkout" 2>/dev/null)" != "$(CURDIR)" ]; then
	    find Cargo.* .cargo $$(dirname */Cargo.toml) -type f -exec touch {} +
	    echo "$(CURDIR)" > "$(CARGO_TARGET_DIR)/checkout"
	fi

build: mine
	@xtask/prerequisites.sh rust gcc
	cargo build --locked --release --package controller --package kine-rs

# In this order, so that a misplaced comma fails in seconds and the runner's summary comes last.
test: check lint deny upstream build unit

check:
	@xtask/prerequisites.sh --install rust gcc c++ go curl python

lint: check mine
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

# Licences, sources and banned crates of everything we depend on; advisories need the network and are not a part of this.
deny: check $(CARGO_DENY_ROOT)/bin/cargo-deny
	"$(CARGO_DENY_ROOT)/bin/cargo-deny" --locked check licenses bans sources

$(CARGO_DENY_ROOT)/bin/cargo-deny:
	env -u CARGO_TARGET_DIR cargo install --quiet --locked --no-default-features --root "$(CARGO_DENY_ROOT)" --version $(CARGO_DENY_VERSION) cargo-deny

upstream: check mine
	@cargo xtask upstream

# Tests find the programs they start by these variables:
#   K0S_TEST_BIN_DIR  kube-apiserver, kube-controller-manager, kube-scheduler, kubelet, kube-proxy, kubectl,
#                     etcd, etcdctl, etcdutl, kine (the Go one), and clients: go-client, python/bin/python
#   K0S_TEST_K0S      our k0s
#   K0S_TEST_KINE     our kine
# What a fuzz target finds fails the run, but hides nothing: it comes after the tests, and before the summary.
unit: upstream build
	@export K0S_TEST_BIN_DIR=$$(cargo xtask upstream)
	export K0S_TEST_K0S="$(RELEASE)/k0s" K0S_TEST_KINE="$(RELEASE)/kine"
	log=$$(mktemp)
	trap 'rm -f "$$log"' EXIT
	status=0
	cargo test --locked --workspace --no-fail-fast </dev/null 2>&1 | tee "$$log" || status=$$?
	fuzz/run.sh --same "$(FUZZ_TEST_SECONDS)" 2>&1 | tee -a "$$log" || status=$$?
	awk '/^test result: / { suites++; passed += $$4; failed += $$6; ignored += $$8 }
	     /^fuzz: .*, nothing found$$/ { suites++; passed++ }
	     /^fuzz: .* FOUND something/ { suites++; failed++ }
	     END { printf "\n%d suites\ntest result: %s. %d passed; %d failed; %d ignored\n",
	                  suites, (failed || '$$status') ? "FAILED" : "ok", passed, failed, ignored }' "$$log"
	exit "$$status"

# fuzz/run.sh builds every fuzz target and runs each for the given number of seconds.
fuzz: check
	@fuzz/run.sh "$(FUZZ_SECONDS)"

bench: check mine
	@cargo xtask bench $(ARGS)
