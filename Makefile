# Shortcuts for development; scripts/ works without make.
.PHONY: check test format lock newest quickstart mini bench

check:
	ruff check .
	ruff format --check .
	mypy

test:
	bash scripts/test.sh

format:
	ruff check --fix .
	ruff format .

lock:
	bash scripts/lock.sh

newest:
	bash scripts/newest.sh

quickstart:
	bash scripts/quickstart.sh

mini:
	bash scripts/mini.sh

bench:
	bash scripts/bench_pruner.sh
