# make demo and make test do everything on a fresh Debian machine; the rest is for those who build here.
# Debian's own first: the service user cannot start one that lives below somebody's home
PYTHON  ?= $(firstword $(wildcard /usr/bin/python3) python3)
VENV    := .venv
BIN     := $(VENV)/bin
PREFIX  ?= /usr/local
ROLE    ?= dispatcher
AGENTS  ?= 3
# many tests wait for something, so there is room for one more than two cores
WORKERS ?= 3
DESTDIR ?=

.PHONY: help install demo test test-long check format cover pyz generate install-system uninstall-system clean system-packages test-packages bench bench-quick

help:
	@echo "make demo            set up, pair AGENTS=3 real agents on loopback, run a script on them, stay up"
	@echo "make test            install what is needed and run the whole test suite"
	@echo "make test-long       the tests that take minutes"
	@echo "make check           format, lint, types, import contracts, fast tests"
	@echo "make cover           the suite with branch coverage, forked children counted"
	@echo "make install         programs into .venv/bin"
	@echo "make install-system  ROLE=dispatcher|agent [PREFIX=/usr/local] into the system; uninstall-system undoes it"
	@echo "make pyz             the agent as one file, dist/ctrl-exec-agent.pyz"
	@echo "make bench           measure every speed target beside its baselines; bench-quick in two minutes"
	@echo "make generate        example files, configuration reference and man pages from the code"

# What a fresh Debian lacks; root (or sudo) installs it, others are told.
system-packages:
	@packaging/apt-packages python3-venv openssl

test-packages:
	@packaging/apt-packages python3-venv openssl curl jq iproute2 nftables chromium systemd apache2-utils

$(BIN)/python: | system-packages
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@

$(VENV)/.installed-test: setup.cfg pyproject.toml $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[docs,test,dev]'
	@touch $@

install: $(VENV)/.installed

demo: install
	$(BIN)/ctrl-exec demo --agents $(AGENTS)

test: $(VENV)/.installed-test test-packages
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m 'not long'

test-long: $(VENV)/.installed-test test-packages
	$(BIN)/python -m pytest -n 2 --dist worksteal -m long --timeout 900

check: $(VENV)/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m 'not long' tests/architecture tests/unit tests/property

format: $(VENV)/.installed-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# A process that became another user cannot write its coverage and says so; a test that looks at its
# stderr then fails here and nowhere else. So the figure is what counts, not the verdict of pytest.
cover: $(VENV)/.installed-test test-packages
	$(BIN)/coverage erase
	-$(BIN)/coverage run --rcfile=setup.cfg -m pytest -n $(WORKERS) -m 'not long'
	$(BIN)/coverage combine --rcfile=setup.cfg -q
	$(BIN)/coverage report --rcfile=setup.cfg

pyz: | $(BIN)/python
	$(BIN)/python packaging/build_pyz.py dist/ctrl-exec-agent.pyz

generate: install
	$(BIN)/python packaging/generate.py

bench: install
	$(BIN)/python -m bench

bench-quick: install
	$(BIN)/python -m bench --quick

install-system:
	packaging/install-system install '$(ROLE)' '$(PREFIX)' '$(DESTDIR)'

uninstall-system:
	packaging/install-system uninstall '$(ROLE)' '$(PREFIX)' '$(DESTDIR)'

clean:
	rm -rf $(VENV) build dist *.egg-info .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache
