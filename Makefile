# Two commands matter: `make demo` and `make test`. Each prepares the checkout first (tools/bootstrap.sh).
.PHONY: demo test bench soak systemd-lab fuzz lint format types clean help
.DEFAULT_GOAL := help
PY := .venv/bin/python

help:
	@echo "make demo     two nodes, real programs, one story: what Mycelia does, on this machine"
	@echo "make test     lint, types and all tests"
	@echo "make bench    Mycelia beside Envoy on this machine (loadtests/README.md)"
	@echo "make soak     long, bounded: 100 times 1,000 tunnels, 300 changes in a mesh of 10,000"
	@echo "make systemd-lab  the services and commands of docs/ under a real systemd, in namespaces (root)"
	@echo "make fuzz     coverage-guided fuzzing of codecs and paths, a minute each (SECONDS=N)"
	@echo "make format   format the sources"
	@echo "make clean    remove .venv and everything that was generated"

demo:
	@tools/bootstrap.sh demo
	@$(PY) -m mesh.cli demo $(ARGS)

test: lint types
	@$(PY) -m pytest -n 4 --dist worksteal $(ARGS)

lint:
	@tools/bootstrap.sh dev
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check --quiet . || { echo "run 'make format'"; exit 1; }

types: lint
	@$(PY) -m mypy

format:
	@tools/bootstrap.sh dev
	@$(PY) -m ruff check --fix-only --quiet .
	@$(PY) -m ruff format .

bench:
	@tools/bootstrap.sh dev
	@$(PY) -m loadtests.bench $(ARGS)
	@$(PY) -m loadtests.waypoint

soak:
	@tools/bootstrap.sh dev
	@$(PY) -m loadtests.bench --contestants mycelia --loads echo-1 --no-memory --leak-cycles 100 $(ARGS)
	@$(PY) -m loadtests.scale --changes 300

systemd-lab:
	@tools/bootstrap.sh dev
	@$(PY) -m tests.systemd_lab

fuzz:
	@tools/bootstrap.sh dev
	@for target in http1 http2 hpack path client_hello token; do $(PY) -m tests.fuzz $$target --seconds $(or $(SECONDS),60) || exit 1; done

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name '__pycache__' -type d -prune -exec rm -rf {} +
	find proto -name '*_pb2.py*' -delete
