#!/usr/bin/env bash
# Installs the package with the test dependencies and runs the tests:
# bash tools/test.sh [pytest arguments]
source "$(dirname "$0")/venv.sh" '[test]'
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# The tests start a hundred processes: what one has parsed, the next need not.
unset PYTHONDONTWRITEBYTECODE
# Compilation uses one core; a process needs up to 4 GB. If a process crashes,
# the run ends and names the test that was running.
.venv/bin/python -m pytest -n auto --maxprocesses=4 --max-worker-restart=0 \
  --dist=loadfile --no-loadscope-reorder "$@"
