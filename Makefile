# SPDX-License-Identifier: GPL-2.0-or-later
# `make demo` runs the main job on real input, `make test` passes the tests. Each sets up all that it needs in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What the tests and the demo use of Debian, as "command:package".
TEST_NEEDS := redis-server:redis-server stress-ng:stress-ng musl-gcc:musl-tools go:golang-go sqlite3:sqlite3 \
	losetup:mount mkswap:util-linux setpriv:util-linux faketime:faketime qemu-system-x86_64:qemu-system-x86
# And what is no command, as "file:package": any kernel of Debian's will do.
TEST_FILES := /boot/vmlinuz-*:linux-image-cloud-amd64
SOURCES := meson.build $(filter-out %.so %__pycache__,$(wildcard src/userswap/*))

.PHONY: demo test test-no-root lint bench torture torture-kills soak install clean check-build check-tests system-packages

demo: install
	$(BIN)/python demo/demo.py

test: check-tests install lint
	$(BIN)/python -m pytest -q

# As root: all that does not have to be, as nobody, who may open /dev/userfaultfd and holds no capability.
test-no-root: check-tests install
	CI=true tests/as_user.sh $(CURDIR)/$(BIN)/python -m pytest -q -p no:cacheprovider -m "not root"

lint: $(VENV)/tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cython-lint src/userswap/*.pyx src/userswap/*.pxd
	$(BIN)/clang-format --dry-run --Werror src/userswap/*.[ch] bench/*.c bench/workloads/*.c

BENCH ?=
bench: install $(VENV)/bench
	$(BIN)/python -m bench $(BENCH)

$(VENV)/bench: pyproject.toml | $(VENV)/tools
	$(BIN)/pip install --quiet --group bench
	touch $@

TORTURE_SECONDS ?= 600
torture: check-tests install
	USERSWAP_TORTURE_SECONDS=$(TORTURE_SECONDS) $(BIN)/python -m pytest -q -s tests/test_torture.py

TORTURE_KILLS ?= 1000
torture-kills: check-tests install
	USERSWAP_KILLS=$(TORTURE_KILLS) $(BIN)/python -m pytest -q -s tests/test_takeover.py -k random

SOAK_SECONDS ?= 3600
soak: check-tests install
	USERSWAP_SOAK_SECONDS=$(SOAK_SECONDS) $(BIN)/python -m pytest -q -s tests/test_soak.py

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml $(SOURCES) | $(VENV)/tools
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pip install --quiet --no-build-isolation --no-deps -Cbuild-dir=build --force-reinstall .
	touch $@

$(VENV)/tools: pyproject.toml | check-build
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --group build --group dev
	touch $@

check-build:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "userswap needs Python 3.11 or newer: package python3"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "missing: package python3-venv"; exit 1; }
	@command -v gcc >/dev/null || { echo "missing: package gcc"; exit 1; }
	@$(PYTHON) -c 'import os, sysconfig; \
		open(os.path.join(sysconfig.get_paths()["include"], "Python.h"))' 2>/dev/null || \
		{ echo "missing: package python3-dev"; exit 1; }

check-tests: check-build
	@missing=""; for need in $(TEST_NEEDS); do \
		PATH="$$PATH:/usr/sbin:/sbin" command -v $${need%%:*} >/dev/null || missing="$$missing $${need##*:}"; done; \
	for need in $(TEST_FILES); do \
		ls $${need%%:*} >/dev/null 2>&1 || missing="$$missing $${need##*:}"; done; \
	if [ -n "$$missing" ]; then \
		echo "the tests need these packages: apt-get install$$missing (or, as root: make system-packages)"; exit 1; fi

# Only on request: installs Debian's packages that the tests need.
system-packages:
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
		$(sort $(foreach need,$(TEST_NEEDS) $(TEST_FILES),$(lastword $(subst :, ,$(need)))))

clean:
	rm -rf build $(VENV) dist
