# baleen's commands. `make demo` shows the engine at work; `make test` is what must pass. Both install what they need (Debian, as root).
#
#   make demo      build, then pull, run, kill and recover, before your eyes
#   make test      every test of every crate, and the whole-system tests with real clients
#   make check     format, lints, docs, licences, sources
#   make release   the static, stripped binary; prints its path and size
#   make fuzz      every fuzz target for a minute each
#   make powercut  power cuts in thousands of states, on three file systems; goes on where the last run stopped
#   make soak      the long versions of the tests that are cut short in `make test`

SHELL := /bin/bash
TARGET := x86_64-unknown-linux-gnu
export CARGO_TARGET_DIR ?= $(CURDIR)/target
RELEASE := $(CARGO_TARGET_DIR)/$(TARGET)/release/baleen
MUTATED := $(CARGO_TARGET_DIR)/mutated/baleen
MULTIARCH := $(shell gcc -print-multiarch 2>/dev/null || echo x86_64-linux-gnu)

# Tools that Debian ships only together with a service (scripts/install-deps unpacks them here and starts nothing).
TOOLS := $(CARGO_TARGET_DIR)/tools
export PATH := $(PATH):$(TOOLS)/usr/bin:$(TOOLS)/usr/sbin

.PHONY: all demo test check release mutated fuzz powercut soak deps bench
all: release

deps:
	@scripts/install-deps

demo: deps release
	@BALEEN_BIN=$(RELEASE) scripts/demo

# The engine with deliberate faults, by which the power-cut rig is judged (store/src/mutation.rs). Never shipped.
mutated: deps
	cargo build --locked -p baleen-cli --features mutations
	@mkdir -p $(CARGO_TARGET_DIR)/mutated && cp --remove-destination $(CARGO_TARGET_DIR)/debug/baleen $(MUTATED)

# The whole-system tests drive the release binary: what users get is what is tested.
test: deps release mutated
	@BALEEN_MUTATED_BIN=$(MUTATED) BALEEN_BIN=$(RELEASE) BALEEN_RELEASE_BIN=$(RELEASE) BALEEN_TOOLS=$(TOOLS) scripts/run-tests

soak: deps release mutated
	@BALEEN_MUTATED_BIN=$(MUTATED) BALEEN_BIN=$(RELEASE) BALEEN_RELEASE_BIN=$(RELEASE) BALEEN_TOOLS=$(TOOLS) BALEEN_SOAK=1 scripts/run-tests

check: deps
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --locked --quiet
	scripts/check-licences
	@if command -v cargo-deny >/dev/null; then cargo deny --locked check; \
	else echo "cargo-deny is not installed: advisories and duplicates are not checked (licences and sources were)"; fi

release: deps
	RUSTFLAGS="-C target-feature=+crt-static" LIBSECCOMP_LINK_TYPE=static LIBSECCOMP_LIB_PATH=/usr/lib/$(MULTIARCH) \
		cargo build --release --locked --target $(TARGET) -p baleen-cli
	@if readelf -lW $(RELEASE) | grep -q INTERP; then echo "$(RELEASE) is not static" >&2; exit 1; fi
	@echo "$(RELEASE): $$(stat -c %s $(RELEASE)) bytes, static"

fuzz: deps
	@scripts/fuzz

# BALEEN_POWERCUT_SECONDS bounds it; without, it ends when every workload has its states.
powercut: deps release
	cargo build --locked -p baleen-powercut
	@BALEEN_BIN=$(RELEASE) BALEEN_TOOLS=$(TOOLS) scripts/powercut

bench: deps release
	@BALEEN_BIN=$(RELEASE) bench/run
