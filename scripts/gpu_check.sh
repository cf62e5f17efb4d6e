#!/usr/bin/env bash
# What no test without a GPU can tell, in under ten minutes: prune, finetune with the dense model as
# teacher in float16 (its loss scaled) and in bfloat16, resume, merge, eval and bench. Ends with an
# error at the first thing that is not as it must be. Results stay in workspace/gpu-check.
#
#   ./scripts/gpu_check.sh                     # the embedded model
#   ./scripts/gpu_check.sh some/model/folder   # or any other, whose tokenizer must be with it
#   DEVICE=cpu ./scripts/gpu_check.sh          # a trial of the script itself
#   SPP=/path/to/spp ./scripts/gpu_check.sh    # with an spp that is installed already
set -euo pipefail
cd "$(dirname "$0")/.."

model=${1:-demo}
device=${DEVICE:-cuda}
steps=${STEPS:-20}
if [ -z "${SPP:-}" ]; then
  ./scripts/install.sh eval plot
  SPP=.venv/bin/spp
fi
work=workspace/gpu-check
rm -rf "$work"
common=(--workspace "$work" --set "model.path=$model" --set "model.device=$device")

# A number of a stage's record: number RUN STAGE KEY
number() { sed -n "s/^ *\"$3\": \([-0-9.e]*\),\{0,1\}$/\1/p" "$work/$1/$2/manifest.json" | head -1; }
below() { awk "BEGIN { exit !($1 < $2) }" || { echo "error: $3: $1 is not below $2" >&2; exit 1; }; }

for dtype in float16 bfloat16; do
  run=("${common[@]}" --run "$dtype" --set "model.dtype=$dtype")
  "$SPP" prune "${run[@]}" --method wanda --pattern 2:4 --calibration demo --samples 16 --sequence-length 128
  finetune=("$SPP" finetune "${run[@]}" --data demo --distill 0.5 --max-steps "$steps"
    --sequence-length 128 --batch-size 4 --accumulation 2 --learning-rate 1e-2
    --set finetune.data.samples=512 --set finetune.data.validation_samples=16
    --set finetune.checkpoint_every=2)
  # Killed once it has a checkpoint, and resumed.
  "${finetune[@]}" &
  until ls "$work/$dtype/finetune.partial/.resume/"checkpoint-*/complete.json > /dev/null 2>&1; do
    kill -0 $! 2> /dev/null || break
    sleep 0.05
  done
  kill -KILL $! 2> /dev/null || true
  wait $! 2> /dev/null || true
  "${finetune[@]}"
  below "$(number "$dtype" finetune validation_loss_after)" \
    "$(number "$dtype" finetune validation_loss_before)" "validation loss in $dtype"
  "$SPP" merge "${run[@]}" --packed
  "$SPP" verify "$work/$dtype/merge" --pattern 2:4 > /dev/null
  "$SPP" eval "${run[@]}" --tasks perplexity --set eval.perplexity.source=demo --set eval.perplexity.sequence_length=128 \
    --set eval.perplexity.max_chunks=64
  "$SPP" bench "$dtype" --workspace "$work" --batch-sizes 1,16 --repeats 3
done
echo
"$SPP" compare --workspace "$work" --columns run,stage,sparsity,perplexity@128,recovered
echo
echo "Checked: float16 and bfloat16 on $device, every stage."
