# Sourced by quickstart.sh and test.sh: installs the package in the virtual
# environment .venv, with the extras in the first argument, such as [test].
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
  local name
  for name in ${PYTHON:-} python3.11 python3.12 python3.13 python3; do
    if "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
        2>/dev/null; then
      echo "$name"
      return
    fi
  done
  echo 'error: Python 3.11, 3.12 or 3.13 was not found; install one, or give its path: PYTHON=/path/to/python3.11 bash' "$0" >&2
  exit 2
}

if [ ! -x .venv/bin/python ]; then
  python=$(find_python)
  echo "Creating a virtual environment in .venv with $python"
  "$python" -m venv .venv || {
    echo 'error: python -m venv failed; on Debian or Ubuntu: apt install python3-venv' >&2
    exit 2
  }
fi
echo 'Installing the package (this takes some minutes the first time)'
.venv/bin/python -m pip install --quiet --disable-pip-version-check \
  --editable ".${1:-}"
