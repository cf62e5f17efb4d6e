#!/usr/bin/env bash
# From a fresh clone to a table: installs into .venv, then prunes, finetunes, merges and evaluates
# the embedded model. Run it again and it says what is up to date. Arguments go to `spp run`.
set -euo pipefail
cd "$(dirname "$0")/.."

./scripts/install.sh eval plot
.venv/bin/spp run configs/demo.yaml --run quickstart "$@"
.venv/bin/spp verify workspace/quickstart/merge > /dev/null
echo
echo "Verified: every pruned weight of workspace/quickstart/merge is zero."
