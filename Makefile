# baleen's commands. `make demo` shows the engine at work; `make test` is what must pass. Both install what they need (Debian, as root).
#
#   make demo      build, then pull, run, kill and recover, before your eyes
#   make test      every test of every crate, and the whole-system tests with real clients
#   make check     format, lints, docs, licences, sources
#   make test-vm   the tests that need another kernel, cgroup version or architecture, in virtual machines; part of `make test`
#   make release   the static, stripped binary; prints its path and size (make release-arm64, release-armhf: for those)
#   make fuzz      every fuzz target for a minute each
#   make powercut  power cuts in thousands of states, on three file systems; goes on where the last run stopped
#   make soak      the long versions of the tests that are cut short in `make test`

SHELL := /bin/bash
TARGET := x86_64-unknown-linux-gnu
export CARGO_TARGET_DIR ?= $(CURDIR)/target
RELEASE := $(CARGO_TARGET_DIR)/$(TARGET)/release/baleen
MUTATED := $(CARGO_TARGET_DIR)/mutated/baleen
RELEASE_ARM64 := $(CARGO_TARGET_DIR)/aarch64-unknown-linux-gnu/release/baleen
RELEASE_ARMHF := $(CARGO_TARGET_DIR)/armv7-unknown-linux-gnueabihf/release/baleen
VM := $(CARGO_TARGET_DIR)/machines
MULTIARCH := $(shell gcc -print-multiarch 2>/dev/null || echo x86_64-linux-gnu)

# Tools that Debian ships only together with a service (scripts/install-deps unpacks them here and starts nothing).
TOOLS := $(CARGO_TARGET_DIR)/tools
export PATH := $(PATH):$(TOOLS)/usr/bin:$(TOOLS)/usr/sbin

.PHONY: all demo test test-vm check release release-arm64 release-armhf vm mutated fuzz powercut soak deps bench
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
test: deps release mutated vm
	@BALEEN_VM=$(VM) BALEEN_MUTATED_BIN=$(MUTATED) BALEEN_BIN=$(RELEASE) BALEEN_RELEASE_BIN=$(RELEASE) BALEEN_TOOLS=$(TOOLS) scripts/run-tests

# Images and programs of the virtual machines. Made once, and kept: the tests only boot them.
vm: deps release
	@scripts/vm-programs

test-vm: vm
	@BALEEN_VM=$(VM) BALEEN_BIN=$(RELEASE) BALEEN_RELEASE_BIN=$(RELEASE) BALEEN_TOOLS=$(TOOLS) \
		cargo test --locked -p baleen-tests --test vm -- --show-output

soak: deps release mutated vm
	@BALEEN_VM=$(VM) BALEEN_MUTATED_BIN=$(MUTATED) BALEEN_BIN=$(RELEASE) BALEEN_RELEASE_BIN=$(RELEASE) BALEEN_TOOLS=$(TOOLS) BALEEN_SOAK=1 scripts/run-tests

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

release-arm64: deps
	@scripts/cross arm64 build --release --locked -p baleen-cli
	@if readelf -lW $(RELEASE_ARM64) | grep -q INTERP; then echo "$(RELEASE_ARM64) is not static" >&2; exit 1; fi
	@echo "$(RELEASE_ARM64): $$(stat -c %s $(RELEASE_ARM64)) bytes, static"

release-armhf: deps
	@scripts/cross armhf build --release --locked -p baleen-cli
	@if readelf -lW $(RELEASE_ARMHF) | grep -q INTERP; then echo "$(RELEASE_ARMHF) is not static" >&2; exit 1; fi
	@echo "$(RELEASE_ARMHF): $$(stat -c %s $(RELEASE_ARMHF)) bytes, static"

fuzz: deps
	@scripts/fuzz

# BALEEN_POWERCUT_SECONDS bounds it; without, it ends when every workload has its states.
powercut: deps release
	cargo build --locked -p baleen-powercut
	@BALEEN_BIN=$(RELEASE) BALEEN_TOOLS=$(TOOLS) scripts/powercut

bench: deps release
	@BALEEN_BIN=$(RELEASE) bench/run
