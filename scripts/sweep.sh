#!/usr/bin/env bash
# Methods × sparsities of the embedded model through one workspace, and a table at the end.
# Kill it at any moment and start it again: what is done is skipped, what was begun goes on.
#
#   ./scripts/sweep.sh                                    # the grid below
#   METHODS="wanda sparsegpt" AMOUNTS="0.6 2:8" ./scripts/sweep.sh --limit 50
#
# Arguments go to every `spp run`.
set -euo pipefail
cd "$(dirname "$0")/.."

./scripts/install.sh eval
export SPP_WORKSPACE=${SPP_WORKSPACE:-workspace/sweep}
for method in ${METHODS:-magnitude wanda sparsegpt}; do
  for amount in ${AMOUNTS:-0.5 0.75 2:4}; do
    case $amount in
      *:*) how=(--pattern "$amount") ;;
      *) how=(--pattern unstructured --sparsity "$amount") ;;
    esac
    .venv/bin/spp run configs/demo.yaml --method "$method" "${how[@]}" "$@"
  done
done
.venv/bin/spp status
