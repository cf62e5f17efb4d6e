#!/usr/bin/env bash
# Makes .venv and installs spp into it with the extras given, e.g. scripts/install.sh dev plot.
# The second time it only looks whether pyproject.toml or the extras changed.
set -euo pipefail
cd "$(dirname "$0")/.."

extras=$(IFS=,; echo "$*")
stamp=".venv/installed-${extras//,/-}"
wanted=$(cat pyproject.toml constraints.txt | cksum)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
  exit 0
fi
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
  echo "spp needs Python 3.10 or newer; $("$python" --version) is not. Set PYTHON=/path/to/python3" >&2
  exit 2
}
[ -x .venv/bin/python ] || "$python" -m venv .venv
echo "Installing spp into .venv (a few minutes the first time)"
# torch first and alone: another package's range must not choose its version.
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$extras]"
echo "$wanted" > "$stamp"
