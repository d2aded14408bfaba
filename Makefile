# Marketplace Governor. `make` lists what there is to do.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
PORT ?=
ONCE ?=
HANDLER ?=
EMPTY ?=
ARCH ?= x86_64
SECONDS ?= 60
TARGET ?=

VENV := .venv/bin
TOOLS := target/tools/bin
CARGO_DENY := 0.20.2
CARGO_FUZZ := 0.13.2
FUNCTIONS := entitlement cancel policy-upgrade governor health checkpoint scale signals

export PATH := $(CURDIR)/$(VENV):$(CURDIR)/$(TOOLS):$(PATH)
export CARGO_TARGET_DIR := $(CURDIR)/target

# Each selection gives the same features, and so one compilation, of every dependency: `make features` holds them to it.
DEPLOYED := $(FUNCTIONS:%=-p %) -p ggen
UNITS := --workspace --exclude end-to-end --exclude benches
TESTED := --profile local $(UNITS)
END_TO_END := --profile local --workspace --test e2e
# Workspaces of their own, with a Cargo.lock of their own.
ORACLES := --manifest-path lib/receipts/oracles/Cargo.toml
FUZZERS := --manifest-path fuzz/Cargo.toml
APART := --target-dir $(CARGO_TARGET_DIR)/apart
STACK := $(VENV)/python infra/local/stack.py
step = @printf '\n\033[1m== %s\033[0m\n' "$(1)"

.PHONY: help setup build run up test verify release bench fuzz clean
.PHONY: fmt-check features clippy rustdoc doctest deny advisories lint-template

help:            ## this list
	@grep -hE '^[a-z-]+: .*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18
	echo
	echo '  PORT=4567 make run    another port for the local cloud (4566)'
	echo '  HANDLER=http://127.0.0.1:8080 make up    with a handler of your own; EMPTY=1 make up as a new stack on AWS'
	echo '  ONCE=1 make run       ends after the story; exit 0 when every step held'
	echo '  ARCH=arm64 make release'
	echo '  TARGET=archive SECONDS=600 make fuzz'

setup: $(VENV)/.installed  ## the Python side of the project, into .venv

.PHONY: present
present:
	command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is missing: install Python 3.11 or newer" >&2; exit 2; }
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "make: $(PYTHON) is too old: Python 3.11 or newer is needed (PYTHON=… chooses one)" >&2; exit 2; }
	command -v cargo >/dev/null || { echo "make: cargo is missing: install Rust from https://rustup.rs" >&2; exit 2; }

$(VENV)/.installed: infra/local/requirements.txt | present
	$(call step,Python packages into .venv)
	$(PYTHON) -m venv .venv
	$(VENV)/python -m pip install --quiet --no-compile --disable-pip-version-check -r $<
	touch $@

build: present   ## functions and ggen, as run and test use them
	$(call step,functions and ggen (profile local): about six minutes on two cores the first time; cargo counts the crates)
	$(MAKE) --jobs 2 setup compile
	cargo lambda build --profile local --compiler cargo --output-format zip $(DEPLOYED)

# Beside the Python packages, as each takes its time. cargo-lambda, one of them, then has nothing left but to pack.
.PHONY: compile
compile:
	cargo build --profile local $(DEPLOYED)

run: build       ## the life of a tenant on a local cloud, then stays up until Ctrl-C
	@PORT="$(or $(PORT),4566)" ONCE="$(ONCE)" $(VENV)/python infra/local/story.py

up: build        ## a local cloud to work with: the stack deployed, sample policies in force, armed; until Ctrl-C
	@PORT="$(or $(PORT),4566)" $(STACK) up $(if $(HANDLER),--handler-url "$(HANDLER)") $(if $(EMPTY),--empty)

test: build      ## unit and property tests, then end-to-end tests on a local cloud of their own
	$(call step,unit and property tests)
	cargo test $(TESTED) --lib --bins --tests
	$(call step,receipts against other implementations)
	cargo test $(ORACLES) $(APART)
	$(call step,end-to-end tests)
	cargo test $(END_TO_END) --no-run
	PORT= $(STACK) exec -- cargo test $(END_TO_END)

verify: fmt-check features clippy rustdoc doctest deny advisories lint-template  ## all checks but tests

fmt-check:
	$(call step,rustfmt)
	cargo fmt --all --check
	cargo fmt $(ORACLES) --check
	cargo fmt $(FUZZERS) --check

features:
	$(call step,features of what is deployed and of what is tested)
	$(PYTHON) infra/features.py "$(DEPLOYED)" "$(UNITS)" "--workspace"

clippy:
	$(call step,clippy)
	cargo clippy --profile local --workspace --all-targets -- -D warnings
	cargo clippy $(ORACLES) $(APART) --all-targets -- -D warnings
	# Nothing is linked: where a libFuzzer is named, its C++ is not compiled.
	CUSTOM_LIBFUZZER_PATH=no/libfuzzer.a cargo clippy $(FUZZERS) $(APART) --all-targets -- -D warnings

rustdoc:
	$(call step,rustdoc)
	RUSTDOCFLAGS='-D warnings' cargo doc --profile local --workspace --no-deps --document-private-items

doctest:
	$(call step,doc tests)
	cargo test $(TESTED) --doc

deny: $(TOOLS)/cargo-deny-$(CARGO_DENY)
	$(call step,licences and bans and sources of dependencies)
	cargo deny check --hide-inclusion-graph bans licenses sources
	# deny.toml allows the licences of the product: the oracles need not have each.
	cargo deny $(ORACLES) check --hide-inclusion-graph --allow license-not-encountered bans licenses sources

advisories: $(TOOLS)/cargo-deny-$(CARGO_DENY)
	$(call step,security advisories)
	if GIT_TERMINAL_PROMPT=0 timeout 20 git ls-remote -q https://github.com/rustsec/advisory-db HEAD >/dev/null 2>&1; then
		cargo deny check --hide-inclusion-graph advisories
	else
		echo 'skipped: the advisory database (github.com/rustsec/advisory-db) cannot be reached from here'
	fi

# An unoptimised build is ready in a third of the time, and checks this workspace in seconds.
$(TOOLS)/cargo-deny-$(CARGO_DENY) $(TOOLS)/cargo-fuzz-$(CARGO_FUZZ):
	$(call step,$(@F) (once))
	tool=$(@F)
	CARGO_TARGET_DIR=$(CURDIR)/target/tools/build \
		cargo install --locked --debug --root target/tools "$${tool%-*}@$${tool##*-}"
	rm -rf target/tools/build
	touch $@

lint-template: setup
	$(call step,infra/template.yaml)
	cfn-lint --include-checks I --non-zero-exit-code informational -- infra/template.yaml && echo 'no findings'
	$(VENV)/python -B infra/test_template.py
	$(call step,infra/local/proxy.py)
	$(VENV)/python -B infra/local/test_proxy.py
	$(call step,infra/local/stack.py)
	$(VENV)/python -B infra/local/test_stack.py

# zig links against the C library of Amazon Linux 2023, whatever this machine has. cargo-lambda adds the CPU level that
# Lambda guarantees; its own profile settings, panic=abort among them, give way to those in Cargo.toml.
release: setup   ## the functions for AWS: target/lambda/<function>/bootstrap.zip
	$(call step,functions for $(ARCH) (profile release))
	cargo lambda build --release --output-format zip $(FUNCTIONS:%=-p %) \
		--target $(if $(filter arm64,$(ARCH)),aarch64,x86_64)-unknown-linux-gnu.2.34

# What is measured is what `make release` deploys, for this machine's CPU; the stack that is driven is the local build.
BENCHED := $(shell uname -m)-unknown-linux-gnu
bench: build     ## sizes, cold starts, AWS calls of each operation, CPU of a webhook, speed of receipts
	$(call step,functions (profile release))
	cargo lambda build --release --output-format zip --lambda-dir target/bench --target $(BENCHED).2.34 \
		$(FUNCTIONS:%=-p %) -p benches --features benches/baseline
	cargo bench -p benches --no-run
	BOOTSTRAPS=$(CURDIR)/target/$(BENCHED)/release ZIPS=$(CURDIR)/target/bench PORT= \
		$(STACK) exec -- cargo bench -p benches
	$(call step,writers of one ledger on the local cloud (profile local))
	PRINT_RATES=1 PORT= $(STACK) exec -- cargo test $(END_TO_END) -- writers::
	$(call step,tenants that subscribe at once (profile local))
	for crowd in 1 20 200; do
		CROWD=$$crowd PRINT_RATES=1 PORT= $(STACK) exec -- cargo test $(END_TO_END) -- a_crowd
	done

# Beside the tests, not among them: see fuzz/README.md. The sanitizers would need another toolchain than the pinned one.
FUZZ := --sanitizer none --target-dir target/fuzz
fuzz: $(TOOLS)/cargo-fuzz-$(CARGO_FUZZ)  ## each reader of receipts on made-up input, for SECONDS (60) each
	$(call step,fuzz targets)
	cargo fuzz build $(FUZZ) $(TARGET)
	for target in $(or $(TARGET),$(basename $(notdir $(wildcard fuzz/fuzz_targets/*.rs)))); do
		printf '\n\033[1m== fuzz %s\033[0m\n' "$$target"
		cargo fuzz run $(FUZZ) "$$target" -- \
			-max_total_time=$(SECONDS) -timeout=10 -rss_limit_mb=256 -verbosity=0 -print_final_stats=1
	done

clean:           ## removes what was built and installed here
	@rm -rf target .venv
