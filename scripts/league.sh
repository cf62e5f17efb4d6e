#!/usr/bin/env bash
# Every method × {50, 60, 70, 75 %, 2:4, 4:8, 2:8} × allocations on the embedded model, from the same
# calibration tokens, each finetuned for the same few steps. Then tables, and a plot as SVG and PNG.
# Kill it at any moment and start it again: what is done is skipped, what was begun goes on.
#
#   ./scripts/league.sh
#   ./scripts/league.sh --jobs 4          # arguments go to `spp sweep`
set -euo pipefail
cd "$(dirname "$0")/.."

./scripts/install.sh eval plot
for sweep in sweep-league sweep-league-allocations; do
  .venv/bin/spp sweep "configs/$sweep.yaml" "$@" > /dev/null
done
.venv/bin/python scripts/league_table.py workspace/league
