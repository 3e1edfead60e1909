#!/usr/bin/env bash
# Builds the docs as a site, in build/docs. Warnings are errors, links within
# the docs are checked:
# bash tools/docs.sh
source "$(dirname "$0")/venv.sh" '[docs]'
.venv/bin/python -m sphinx --fail-on-warning --keep-going --quiet \
  --conf-dir docs . build/docs
echo 'Look at build/docs/docs/index.html'
