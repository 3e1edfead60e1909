#!/usr/bin/env bash
# Installs the package with what the tests need, and runs them:
# bash tools/test.sh [pytest arguments]
source "$(dirname "$0")/venv.sh" '[test]'
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# Compiling keeps one core busy; a process takes up to 4 GB. A process that is
# lost ends the run, which names the test it was in.
.venv/bin/python -m pytest -n auto --maxprocesses=4 --max-worker-restart=0 \
  --dist=loadfile --no-loadscope-reorder "$@"
