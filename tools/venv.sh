# Sourced by quickstart.sh and test.sh: a virtual environment in .venv with the
# package and the extras named in the first argument, such as [test].
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
  echo 'error: no Python 3.11 to 3.13 found; install one, or name it: PYTHON=/path/to/python3.11 bash' "$0" >&2
  exit 2
}

if [ ! -x .venv/bin/python ]; then
  python=$(find_python)
  echo "Making a virtual environment in .venv with $python"
  "$python" -m venv .venv || {
    echo 'error: python -m venv failed; on Debian or Ubuntu: apt install python3-venv' >&2
    exit 2
  }
fi
echo 'Installing the package (the first time takes some minutes)'
.venv/bin/python -m pip install --quiet --disable-pip-version-check \
  --editable ".${1:-}"
