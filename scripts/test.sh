#!/usr/bin/env bash
# Installs what the tests need, checks style and types, builds the documentation, and runs all tests.
# Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

./scripts/install.sh dev plot docs
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
./scripts/docs.sh
# One process a core, each with one thread: the models are too small to gain from more.
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --dist worksteal "$@"
