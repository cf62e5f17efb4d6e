#!/usr/bin/env bash
# Every adapter from one pruned checkpoint of the embedded model: the same tokens, the same steps,
# each with the learning rate that a short search found for it. Then a table.
# Kill it at any moment and start it again: what is done is skipped, what was begun goes on.
#
#   ./scripts/bakeoff.sh
#   ADAPTERS="spp masked-lora" STEPS=150 ./scripts/bakeoff.sh --pattern 2:8
#
# Arguments go to `spp prune`.
set -euo pipefail
cd "$(dirname "$0")/.."

./scripts/install.sh eval
export SPP_WORKSPACE=${SPP_WORKSPACE:-workspace/bakeoff}
adapters=${ADAPTERS:-spp multiplicative masked-lora masked-full lora}
.venv/bin/spp prune configs/demo.yaml --run pruned "$@"
for adapter in $adapters; do
  .venv/bin/spp prune configs/demo.yaml --run "$adapter" "$@"     # links what is there
  # The keys of the demo's adapter are those of spp; here each has its own defaults.
  with=(configs/demo.yaml --run "$adapter" --set "finetune.adapter={name: $adapter}")
  with+=(--set "finetune.max_steps=${STEPS:-300}")
  found=$SPP_WORKSPACE/$adapter/find-lr.json
  [ -s "$found" ] || .venv/bin/spp finetune "${with[@]}" --learning-rate "${START:-1e-2}" --find-lr
  rate=$(.venv/bin/python -c "import json, sys; print(json.load(open(sys.argv[1]))['best']['learning_rate'])" "$found")
  .venv/bin/spp finetune "${with[@]}" --learning-rate "$rate"
  .venv/bin/spp merge "${with[@]}"
  .venv/bin/spp eval "${with[@]}" --tasks perplexity
done
.venv/bin/python scripts/bakeoff_table.py "$SPP_WORKSPACE" $adapters
