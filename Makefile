# stackfs: every target does its own set-up first and says what it does. Nothing to do costs no time.
#
#   make build       system packages (as root, only what is missing), .venv, the compiled core
#   make run         the demo volume: mounted, used, shown; KEEP=1 leaves it mounted
#   make test        the tests, 12 minutes at most; make test-long: the full numbers
#   make sanitize    the core's tests under AddressSanitizer and UBSan; SANITIZE=thread under ThreadSanitizer
#   make lint        ruff, mypy --strict, cython-lint
#   make bench       the benchmarks, 8 minutes at most; FULL=1 for everything, CHECK=1 fails when a target is missed,
#                    RECORD=1 keeps the result in docs/performance.md
#   make docs        the documentation as HTML in docs/_build
#   make install     for the machine: $(PREFIX)/lib/stackfs, $(PREFIX)/bin, /sbin/mount.fuse.stackfs; DESTDIR is honoured
#   make uninstall   takes that away again;  make clean: takes away whatever was built here

SHELL := /bin/bash
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := build
.DELETE_ON_ERROR:

PREFIX ?= /usr/local
DESTDIR ?=
PYTHON ?=
VENV := .venv
SETUP := PYTHON='$(PYTHON)' PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' ./setup.sh

on = $(filter-out 0,$(1))

# Tests beside each other: each process has its own mounts and sockets (tests/conftest.py).
BESIDE := --numprocesses auto --maxprocesses 4 --dist worksteal

CORE := $(shell find cext filters benchmarks -name __pycache__ -prune -o \( -name '*.pyx' -o -name '*.pxd' -o -name '*.h' \) -print)

.PHONY: always build run test test-long sanitize lint bench docs install uninstall clean

build: build/.core
	@echo "stackfs: built; the commands are $(VENV)/bin/stackfs and $(VENV)/bin/fltmc"

build/.packages: setup.sh
	@$(SETUP) packages

$(VENV)/.ready: build/.packages setup.sh pyproject.toml setup.py
	@$(SETUP) venv

build/.core: $(VENV)/.ready setup.py build/.sources $(CORE)
	@$(SETUP) core

# Younger only when a source came or went.
build/.sources: always
	@mkdir -p build; echo $(sort $(CORE)) | cmp -s - $@ || echo $(sort $(CORE)) >$@

run: build
	@echo "stackfs: the demo volume"
	@$(VENV)/bin/python benchmarks/demo.py

test: build
	@echo "stackfs: tests (make test-long adds the long ones)"
	@$(VENV)/bin/python -m pytest -q -m "not long" $(BESIDE)

test-long: build
	@$(SETUP) test_packages
	@echo "stackfs: all tests"
	@$(VENV)/bin/python -m pytest -q -m "not long" $(BESIDE)
	@$(VENV)/bin/python -m pytest -q -m long $(BESIDE)

sanitize: build
	@$(SETUP) sanitize

lint: build
	@echo "stackfs: ruff";        $(VENV)/bin/ruff check --quiet --output-format concise .
	@echo "stackfs: mypy";        $(VENV)/bin/mypy --no-error-summary
	@echo "stackfs: cython-lint"; PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cython-lint cext filters benchmarks
	@echo "stackfs: lint finds nothing"

$(VENV)/.bench: $(VENV)/.ready pyproject.toml
	@$(SETUP) bench

bench: build $(VENV)/.bench
	@echo "stackfs: benchmarks, results in build/bench$(if $(call on,$(FULL)),, (FULL=1 for everything))"
	@$(VENV)/bin/stackfs bench --output build/bench $(if $(call on,$(FULL)),--full) $(if $(call on,$(CHECK)),--check) \
		$(if $(call on,$(RECORD)),--record docs/performance.md)

docs: build
	@$(SETUP) docs

install: build
	@$(SETUP) install

uninstall:
	@$(SETUP) uninstall

clean:
	@$(SETUP) clean
