"""Mistakes with runs, stages and the workspace, and results that were spoilt by hand."""

from __future__ import annotations

import torch
from end_to_end.mistakes.row import (
    RUN,
    Mistake,
    copied,
    edited,
    filled,
    flipped,
    garbled,
    moved,
    removed,
    reworded,
    tensor_changed,
    truncated,
    written,
)

OTHER = "workspace/base-wanda-0.6"
DOWN = "model.layers.1.mlp.down_proj"
CHANGED = "has changed since: its digest is not the one on record, so the"
ANEW = "cannot be trusted. Make it again: spp"

MISTAKES = [
    Mistake(
        "finetune before prune",
        "spp finetune",
        "workspace has no run with a pruned model yet. Run: spp prune",
        (removed("workspace"),),
    ),
    Mistake(
        "finetune of a run that is not there",
        "spp finetune --run base-wanda-0.7",
        "finetune needs a pruned model, and run base-wanda-0.7 has none. To take over that of "
        "another run, add --from-run with one of: base-wanda-0.6, base-wanda-0.5",
    ),
    Mistake(
        "finetune of another model than that of the file",
        "spp finetune small.yaml --run base-wanda-0.5 --set model=demo",
        "run base-wanda-0.5 is of base, and --set model=demo names demo. "
        "Name a run of that model with --run, or leave the model out",
    ),
    Mistake(
        "a run to take over from without a new one",
        "spp merge --from-run base-wanda-0.5",
        "--from-run is for a new run. Name it with --run NAME",
    ),
    Mistake(
        "a task that only the last of several stages needs",
        "spp run small.yaml --run new --set eval.tasks=[hellaswagg]",
        "eval.tasks names 'hellaswagg', an unknown task. Did you mean 'hellaswag'?",
    ),
    Mistake(
        "rows that only the second of several stages needs",
        "spp run small.yaml --run new --set finetune.data.source=nowhere.jsonl",
        "finetune.data.source: nowhere.jsonl: no such file or folder. Allowed: …",
    ),
    Mistake(
        "merge before finetune",
        "spp merge --run base-wanda-0.6",
        "merge needs a finetuned model, and run base-wanda-0.6 has none. "
        "Run: spp finetune --run base-wanda-0.6",
    ),
    Mistake(
        "evaluation of a stage that is not there",
        "spp eval --run base-wanda-0.6 --stage merge",
        "eval: none of the stages merge is there yet. Run: spp merge",
    ),
    Mistake(
        "other settings on the same run",
        "spp prune small.yaml --run base-wanda-0.5 --sparsity 0.75 --set prune.calibration.seed=3",
        "run base-wanda-0.5 has a pruned model with other settings: prune.sparsity: 0.5 → 0.75; "
        "prune.calibration.seed: 0 → 3. Add --force to replace it, or --run NAME to keep both",
    ),
    Mistake(
        "another model on the same run",
        "spp prune small.yaml --run base-wanda-0.5 --model other",
        "run base-wanda-0.5 has a pruned model with other settings: model.digest: … → …. "
        "Add --force to replace it, or --run NAME to keep both",
        (copied("base", "other"), flipped("other/model.safetensors")),
    ),
    Mistake(
        "other settings of a finetune",
        "spp finetune --run base-wanda-0.5 --learning-rate 1e-2",
        "run base-wanda-0.5 has a finetuned model with other settings: "
        "finetune.learning_rate: 0.004 → 0.01. "
        "Add --force to replace it, or --run NAME --from-run base-wanda-0.5 to keep both",
    ),
    Mistake(
        "a workspace that is a file",
        "spp prune small.yaml --workspace text.txt",
        "the workspace cannot be there: text.txt is not a folder. "
        "Move it, or choose another --workspace",
    ),
    Mistake(
        "a workspace below a file",
        "spp prune small.yaml --workspace text.txt/runs",
        "the workspace cannot be there: text.txt is not a folder. "
        "Move it, or choose another --workspace",
    ),
    Mistake(
        "a workspace in a stage",
        f"spp prune small.yaml --workspace {RUN}/merge/runs",
        f"the workspace cannot be there: {RUN}/merge/runs is in the merge of run base-wanda-0.5. "
        "Choose another --workspace",
    ),
    Mistake(
        "an archive unpacked into a stage",
        f"spp unpack {RUN}/merge {OTHER}/prune",
        f"the target is {OTHER}/prune, in the prune of run base-wanda-0.6, where only spp prune "
        "writes. Choose a place outside it",
    ),
    Mistake(
        "a run that is a file",
        "spp prune small.yaml --run new",
        "run new cannot be there: workspace/new is not a folder. Move it, or choose another --run",
        (written("workspace/new", "text"),),
    ),
    Mistake(
        "a workspace that cannot be written",
        "spp prune small.yaml --workspace /proc/spp",
        "cannot write /proc/spp/base-wanda-0.5/.lock: …",
    ),
    Mistake(
        "status of a run that is not there",
        "spp status base-wanda-0.9",
        "workspace has no run base-wanda-0.9. Runs there: base-wanda-0.6, base-wanda-0.5",
    ),
    Mistake(
        "a card of a stage that leaves no model",
        "spp card base-wanda-0.5/finetune",
        "base-wanda-0.5/finetune names no model of run base-wanda-0.5; must be one of merge, prune",
    ),
    Mistake(
        "a card of a model that is not merged",
        "spp card base-wanda-0.6",
        "a model card needs a merged model, and run base-wanda-0.6 has none. "
        "Run: spp merge --run base-wanda-0.6",
    ),
    Mistake(
        "push without a token",
        "spp push base-wanda-0.5 owner/name --yes",
        "push needs a token of the hub in the environment, and HF_TOKEN is not set. "
        "Make one with write access at …/settings/tokens, then: export HF_TOKEN=…",
    ),
    Mistake(
        "push of a model whose zeros were filled",
        "spp push base-wanda-0.5 owner/name",
        f"{RUN}/merge: {DOWN}: 1 pruned weights are not zero. Nothing was sent. "
        "Make it again: spp merge --run base-wanda-0.5 --force",
        (tensor_changed(f"{RUN}/merge/model.safetensors", f"{DOWN}.weight", filled),),
        code=1,
    ),
    Mistake(
        "pruned weights filled before finetune",
        "spp finetune small.yaml --run base-wanda-0.5 --force",
        f"{RUN}/prune/model.safetensors {CHANGED} prune of run base-wanda-0.5 {ANEW} "
        "prune --run base-wanda-0.5 --force",
        (tensor_changed(f"{RUN}/prune/model.safetensors", f"{DOWN}.weight", filled),),
    ),
    Mistake(
        "pruned weights filled before a merge that trusts files",
        "spp merge small.yaml --run base-wanda-0.5 --force --trust-files",
        f"{RUN}/prune: 1 pruned weights of {DOWN} are not zero. "
        "The folder was changed after pruning; prune again: spp prune --force",
        (tensor_changed(f"{RUN}/prune/model.safetensors", f"{DOWN}.weight", filled),),
    ),
    Mistake(
        "pruned weights cut short",
        "spp finetune --run base-wanda-0.6",
        f"{OTHER}/prune/model.safetensors has … bytes instead of …, so the prune of run "
        f"base-wanda-0.6 {ANEW} prune --run base-wanda-0.6 --force",
        (truncated(f"{OTHER}/prune/model.safetensors"),),
    ),
    Mistake(
        "keep masks missing",
        "spp finetune --run base-wanda-0.6",
        f"{OTHER}/prune/keep_masks.safetensors is missing, so the prune of run "
        f"base-wanda-0.6 {ANEW} prune --run base-wanda-0.6 --force",
        (removed(f"{OTHER}/prune/keep_masks.safetensors"),),
    ),
    Mistake(
        "keep masks corrupt",
        "spp finetune small.yaml --run base-wanda-0.6 --trust-files",
        f"{OTHER}/prune/keep_masks.safetensors is corrupt: …. Prune again: spp prune --force",
        (garbled(f"{OTHER}/prune/keep_masks.safetensors"),),
    ),
    Mistake(
        "keep masks changed",
        "spp finetune small.yaml --run base-wanda-0.6",
        f"{OTHER}/prune/keep_masks.safetensors {CHANGED} prune of run base-wanda-0.6 {ANEW} "
        "prune --run base-wanda-0.6 --force",
        (flipped(f"{OTHER}/prune/keep_masks.safetensors"),),
    ),
    Mistake(
        "a record cut short",
        "spp finetune --run base-wanda-0.6",
        f"{OTHER}/prune/manifest.json is corrupt, so the prune of run base-wanda-0.6 {ANEW} "
        "prune --run base-wanda-0.6 --force",
        (truncated(f"{OTHER}/prune/manifest.json"),),
    ),
    Mistake(
        "recorded settings spoilt by hand",
        "spp finetune --run base-wanda-0.6",
        f"{OTHER}/prune/config.yaml:1: unknown key 'prun'. Did you mean 'prune'?",
        (written(f"{OTHER}/prune/config.yaml", "prun: {}\n"),),
    ),
    Mistake(
        "an adapter from another run",
        "spp merge small.yaml --run base-wanda-0.6",
        "merge needs a finetuned model, and that of run base-wanda-0.6 is stale: its prune has "
        "changed since. Run: spp finetune --run base-wanda-0.6",
        (copied(f"{RUN}/finetune", f"{OTHER}/finetune"),),
    ),
    Mistake(
        "an adapter edited by hand",
        "spp merge --run base-wanda-0.5 --force",
        f"{RUN}/finetune/adapter_config.json has … bytes instead of …, so the finetune of run "
        f"base-wanda-0.5 {ANEW} finetune --run base-wanda-0.5 --force",
        (edited(f"{RUN}/finetune/adapter_config.json", mask_digest="0"),),
    ),
    Mistake(
        "an adapter for other masks",
        "spp merge --run base-wanda-0.5 --force --trust-files",
        f"the adapter in {RUN}/finetune was trained on another base than {RUN}/prune: "
        "their masks differ. Finetune again: spp finetune --force",
        (reworded(f"{RUN}/finetune/adapter_config.json", '"mask_digest": "....', "0000"),),
    ),
    Mistake(
        "an adapter of NaN",
        "spp merge --run base-wanda-0.5 --force --trust-files",
        f"merge makes NaN or infinity in {DOWN}. Nothing was saved. "
        "Finetune again with a lower finetune.learning_rate",
        (
            tensor_changed(
                f"{RUN}/finetune/adapter.safetensors",
                f"{DOWN}.A",
                lambda factor: factor.fill_(torch.nan),
            ),
        ),
        code=1,
    ),
    Mistake(
        "an adapter that is corrupt",
        "spp merge --run base-wanda-0.5 --force --trust-files",
        f"{RUN}/finetune/adapter.safetensors is missing or corrupt: …. "
        "Finetune again: spp finetune --force",
        (garbled(f"{RUN}/finetune/adapter.safetensors"),),
    ),
    Mistake(
        "a misspelt task",
        "spp eval small.yaml --tasks hellaswagg",
        "eval.tasks names 'hellaswagg', an unknown task. Did you mean 'hellaswag'?",
    ),
    Mistake(
        "a folder of tasks that is not there",
        "spp eval small.yaml --tasks mine --task-folder nowhere",
        "eval.task_folder is 'nowhere', which is not a folder",
    ),
    Mistake(
        "a folder and a stage to evaluate",
        "spp eval --path base --stage dense",
        "--path evaluates a folder of its own; leave --stage and --run out",
    ),
    Mistake(
        "evaluation of a folder that is no model",
        "spp eval --path workspace",
        "workspace has no config.json; it is not a model folder",
    ),
    Mistake(
        "verification of nothing",
        "spp verify nowhere",
        "nowhere: no such folder. Give a model's folder or its hub id",
    ),
    Mistake(
        "verification of a pattern that is none",
        f"spp verify {RUN}/prune --pattern 4:2",
        "pattern is '4:2'; must be N:M with 0 < N < M, for example 2:4 (2 of 4 stay)",
    ),
    Mistake(
        "verification against a corrupt record",
        f"spp verify {RUN}/prune",
        f"{RUN}/prune/spp_sparsity.json is corrupt: …. Copy it anew, or prune again",
        (truncated(f"{RUN}/prune/spp_sparsity.json"),),
    ),
    Mistake(
        "verification of a pruned weight that was filled",
        f"spp verify {RUN}/merge",
        f"{DOWN}: 1 pruned weights are not zero",
        (tensor_changed(f"{RUN}/merge/model.safetensors", f"{DOWN}.weight", filled),),
        code=1,
    ),
    Mistake(
        "verification of masks that were changed",
        f"spp verify {RUN}/prune",
        "…: … pruned weights are not zero; and 1 more like it, see the table",
        (flipped(f"{RUN}/prune/keep_masks.safetensors"),),
        code=1,
    ),
    Mistake(
        "verification of weights of another model",
        f"spp verify {OTHER}/prune",
        f"{OTHER}/prune has no tensor model.layers.0.self_attn.q_proj.weight, which its "
        "config.json asks for. Copy it anew",
        (moved(f"{RUN}/finetune/adapter.safetensors", f"{OTHER}/prune/model.safetensors"),),
    ),
]
