# Keyward. `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Override on the command line: make run PORT=6380
PORT ?= 6379
DASHBOARD_PORT ?= 8600
PYTHON ?= python3

TARGET_DIR := $(abspath $(or $(CARGO_TARGET_DIR),target))
MODULE := $(TARGET_DIR)/release/libkeyward.so
VENV := .venv
# The servers whose binaries come with the Python test environment.
MATRIX := redis-8.2 valkey-8.1 valkey-9.1

export KEYWARD_MODULE ?= $(MODULE)

.PHONY: help setup build deb run venv test test-rust test-server test-matrix test-built fire soak leaks sanitize fuzz lint format bench demo dashboard screenshot docs docs-check clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install the system packages that are missing (as root or with sudo)
	@scripts/setup.sh server build python bench peers node database monitoring browser package clock

build: ## Build the module: target/release/libkeyward.so
	@scripts/setup.sh build
	cargo build --release --locked
	@echo "built $(MODULE)"

deb: build ## Build the Debian package: target/deb/
	@scripts/setup.sh package
	@packaging/build-deb.sh "$(MODULE)" "$(TARGET_DIR)/deb"

run: build ## Start a server with the module in the foreground (PORT=6379)
	@scripts/setup.sh server
	@if (exec 3<>/dev/tcp/127.0.0.1/$(PORT)) 2>/dev/null; then \
		echo "run: port $(PORT) is taken; choose another one: make run PORT=6380" >&2; exit 1; \
	fi
	@mkdir -p .run
	@echo "run: redis-cli -p $(PORT) talks to it, Ctrl-C stops it, its data is in .run/"
	@exec redis-server redis.conf.example --port $(PORT) --dir "$(CURDIR)/.run" --loadmodule "$(MODULE)"

venv: $(VENV)/.installed ## Make the Python test environment in .venv

$(VENV)/.installed: tests/requirements.txt
	@scripts/setup.sh python
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	@touch $@

# For the tests of the examples; pytest asks for them.
NODE_MODULES := $(patsubst %/package.json,%/node_modules,$(wildcard examples/*/package.json))

$(NODE_MODULES:%=%/.installed): %/node_modules/.installed: %/package-lock.json
	@scripts/setup.sh node
	npm ci --prefix $* --no-audit --no-fund --loglevel=error
	@touch $@

# Half of the time the tests wait for servers; a file stays in one process.
PYTEST := $(VENV)/bin/pytest --numprocesses auto --maxprocesses 4 --dist loadfile

test: test-rust test-server ## Everything but the other servers: Rust tests, then pytest on redis-server

test-rust: ## Unit and property tests; they need no server
	@scripts/setup.sh build
	cargo test --no-default-features --locked

test-server: build venv ## pytest against redis-server (PYTEST_ARGS="-k name")
	@scripts/setup.sh server peers node database monitoring browser package clock
	KEYWARD_SERVER=redis-7.0 $(PYTEST) $(PYTEST_ARGS)

test-matrix: build venv ## pytest against Redis 8.2, Valkey 8.1 and Valkey 9.1
	@scripts/setup.sh server peers node database monitoring package clock
	@failed=(); for server in $(MATRIX); do \
		echo "== $$server"; \
		KEYWARD_SERVER=$$server $(PYTEST) $(PYTEST_ARGS) || failed+=("$$server"); \
	done; \
	if (($${#failed[@]})); then echo "test-matrix: failed on $${failed[*]}" >&2; exit 1; fi

# What is different where slots move atomically: clusters, and how commands tell their keys.
BUILT := redis-8.6
BUILT_TESTS ?= $(wildcard tests/test_cluster_*.py tests/test_lock_cluster.py tests/test_command_docs.py tests/test_acl*.py)

test-built: build venv ## pytest of clusters against Redis 8.6, if its source can be had (BUILT_TESTS=tests for all)
	@scripts/setup.sh server redis node
	@status=0; scripts/build_redis.sh || status=$$?; \
	if ((status == 3)); then echo "test-built: left out"; exit 0; elif ((status)); then exit 1; fi; \
	KEYWARD_SERVER=$(BUILT) $(PYTEST) $(BUILT_TESTS) $(PYTEST_ARGS)

# Nightly: what takes too long for every change. SERVERS="redis-7.0" for one of them; docs/testing.md says how to replay a seed.
SERVERS ?= redis-7.0 $(MATRIX)

fire: build venv ## A million random commands of all families on each server (KEYWARD_COMMANDS=1000000 KEYWARD_SEED=)
	@scripts/setup.sh server
	@for server in $(SERVERS); do KEYWARD_SERVER=$$server PYTHONPATH=tests $(VENV)/bin/python -m fire; done

soak: build venv ## A mixed load for ten minutes: nothing may grow (SOAK_SECONDS=3600 by hand)
	@scripts/setup.sh server
	PYTHONPATH=tests $(VENV)/bin/python -m fire.soak

leaks: build venv ## Every command under valgrind: memory that nobody knows any more
	@scripts/setup.sh server bench
	$(VENV)/bin/pytest -q tests/leaks.py

SANITIZED := -Zsanitizer=address
sanitize: ## Rust tests with the address and the leak sanitizer; needs a nightly toolchain
	@scripts/setup.sh build
	RUSTFLAGS="$(SANITIZED)" cargo +nightly test --no-default-features --locked --target $$(rustc -vV | sed -n 's/host: //p') --target-dir $(TARGET_DIR)/sanitized

fuzz: ## Each fuzz target for FUZZ_SECONDS=300; needs a nightly toolchain and cargo-fuzz
	@for target in scripts dumps names bus; do cargo +nightly fuzz run $$target -- -max_total_time=$(FUZZ_SECONDS) || exit 1; done
FUZZ_SECONDS ?= 300

lint: venv ## rustfmt, clippy with and without the host layer, ruff
	@scripts/setup.sh build
	cargo fmt --check
	cargo clippy --all-targets --locked -- -D warnings
	cargo clippy --all-targets --no-default-features --locked -- -D warnings
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check

format: venv ## Format Rust and Python
	cargo fmt
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

bench: build venv ## Instructions per command, side by side with what there is without the module
	@scripts/setup.sh server bench
	$(VENV)/bin/python benches/run.py

demo: build venv ## Real flights from SQLite through the module, checked answer by answer
	@scripts/setup.sh server
	$(VENV)/bin/python examples/demo/run.py $(DEMO_ARGS)

dashboard: venv ## A page that shows what goes on at PORT (DASHBOARD_PORT=8600, TRAFFIC=yes makes some)
	@exec $(VENV)/bin/python examples/dashboard/dashboard.py --url redis://127.0.0.1:$(PORT) --port $(DASHBOARD_PORT) $(if $(TRAFFIC),--traffic)

screenshot: build venv ## Take docs/images/dashboard.png, over real traffic
	@scripts/setup.sh server browser
	KEYWARD_WRITE_SCREENSHOT=1 KEYWARD_SERVER=redis-7.0 $(VENV)/bin/pytest -q tests/test_dashboard_page.py -k screenshot

docs: ## Write docs/commands from the command specs
	KEYWARD_WRITE_DOCS=1 cargo test --no-default-features --locked --test command_docs

docs-check: ## Fail when docs/commands and the command specs differ
	cargo test --no-default-features --locked --test command_docs

clean: ## Remove what was built and the Python environment
	cargo clean
	rm -rf $(VENV) $(NODE_MODULES) .run .pytest_cache .ruff_cache .hypothesis
