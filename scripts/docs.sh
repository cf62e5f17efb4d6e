#!/usr/bin/env bash
# Builds the documentation into build/site. A link or an anchor that leads nowhere is an error, and
# so is a page that would load a script or a style from elsewhere.
# Open build/site/index.html; or ./scripts/docs.sh serve, to read while you write, and to search.
set -euo pipefail
cd "$(dirname "$0")/.."

[ -x .venv/bin/mkdocs ] || ./scripts/install.sh docs
export NO_MKDOCS_2_WARNING=1
.venv/bin/python scripts/config_reference.py --check
if [ $# -gt 0 ]; then
  exec .venv/bin/mkdocs "$@" --strict
fi
.venv/bin/mkdocs build --strict
if grep -rnE '<(script|link|img)[^>]*(src|href)="(https?:)?//' build/site --include=*.html; then
  echo "These lines of build/site load something from elsewhere." >&2
  exit 1
fi
