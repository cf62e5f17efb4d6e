"""Mistakes in flags, --set and YAML files."""

from __future__ import annotations

from end_to_end.mistakes.row import Mistake, added, written

SHARE = "must be a number above 0 and below 1"

MISTAKES = [
    Mistake(
        "a sparsity that is no share",
        "spp prune small.yaml --sparsity 7.5",
        f"--sparsity: prune.sparsity is 7.5; {SHARE}",
    ),
    Mistake(
        "a sparsity of nothing",
        "spp prune small.yaml --sparsity 0",
        f"--sparsity: prune.sparsity is 0; {SHARE}",
    ),
    Mistake(
        "a sparsity of all",
        "spp prune small.yaml --sparsity 1",
        f"--sparsity: prune.sparsity is 1; {SHARE}",
    ),
    Mistake(
        "a sparsity that is no number",
        "spp prune small.yaml --sparsity .nan",
        f"--sparsity: prune.sparsity is nan; {SHARE}",
    ),
    Mistake(
        "a sparsity in percent",
        "spp prune small.yaml --sparsity 75%",
        f"--sparsity: prune.sparsity is '75%'; {SHARE}. Write 0.75",
    ),
    Mistake(
        "a pattern for a sparsity",
        "spp prune small.yaml --sparsity 2:4",
        f"--sparsity: prune.sparsity is '2:4'; {SHARE}. 2:4 is a pattern: set prune.pattern",
    ),
    Mistake(
        "a pattern that keeps more than there is",
        "spp prune small.yaml --pattern 3:2",
        "--pattern: prune.pattern is '3:2'; "
        "must be unstructured, or N:M with 0 < N < M, for example 2:4",
    ),
    Mistake(
        "a sparsity that contradicts the pattern",
        "spp prune small.yaml --pattern 2:8 --sparsity 0.5",
        "--sparsity: prune.sparsity is 0.5; but pattern 2:8 keeps 2 of every 8, a sparsity of "
        "0.75. Leave sparsity out, or choose pattern: unstructured",
    ),
    Mistake(
        "an unknown method",
        "spp prune small.yaml --method spasegpt",
        "--method: prune.method is 'spasegpt'; must be one of magnitude, wanda, sparsegpt, fista, "
        "mrp, alps, isc, ria, wanda++. Did you mean 'sparsegpt'?",
    ),
    Mistake(
        "an unknown key of a method",
        "spp prune small.yaml --method sparsegpt --set prune.method.dampin=0.1",
        "--set prune.method.dampin=0.1: unknown key 'prune.method.dampin'. Did you mean 'damping'?",
    ),
    Mistake(
        "an unknown allocation",
        "spp prune small.yaml --allocation olw",
        "--allocation: prune.allocation is 'olw'; must be one of uniform, owl, sensitivity, globs. "
        "Did you mean 'owl'?",
    ),
    Mistake(
        "an allocation for a pattern that fixes it",
        "spp prune small.yaml --pattern 2:4 --allocation owl",
        "--allocation: prune.allocation is 'owl'; but pattern 2:4 gives every layer the same "
        "ratio. Choose pattern: unstructured, or allocation: uniform",
    ),
    Mistake(
        "a ratio of all",
        "spp prune mine.yaml",
        "mine.yaml:3: prune.allocation.*.mlp.* is 1; must be a number of at least 0 and below 1",
        (written("mine.yaml", "prune:\n  allocation:\n    '*.mlp.*': 1\n"),),
    ),
    Mistake(
        "an unknown stage",
        "spp eval small.yaml --stage pruned",
        "--stage: eval.stages is 'pruned'; must be dense, prune, finetune or merge. "
        "Did you mean 'prune'?",
    ),
    Mistake(
        "an unknown type of weights",
        "spp prune small.yaml --dtype int8",
        "--dtype: model.dtype is 'int8'; must be auto, bfloat16, float16 or float32",
    ),
    Mistake(
        "an unknown device",
        "spp prune small.yaml --device gpu",
        "--device: model.device is 'gpu'; must be auto, cpu, cuda or cuda:N",
    ),
    Mistake(
        "no calibration at all",
        "spp prune small.yaml --samples 0",
        "--samples: prune.calibration.samples is 0; must be a whole number of at least 1",
    ),
    Mistake(
        "half a sample",
        "spp prune small.yaml --samples 2.5",
        "--samples: prune.calibration.samples is 2.5; must be a whole number of at least 1",
    ),
    Mistake(
        "a calibration source without weight",
        "spp prune small.yaml --calibration '{text.txt: 3, rows.jsonl: 0}'",
        "--calibration: prune.calibration.source is {'text.txt': 3, 'rows.jsonl': 0}; "
        "the weight of rows.jsonl must be a number above 0",
    ),
    Mistake(
        "no calibration source at all",
        "spp prune mine.yaml",
        "mine.yaml:3: prune.calibration.source is {}; must not be empty",
        (written("mine.yaml", "prune:\n  calibration:\n    source: {}\n"),),
    ),
    Mistake(
        "a list of calibration sources",
        "spp prune mine.yaml",
        "mine.yaml:3: prune.calibration.source is ['c4', 'text.txt']; "
        "must be text or a mapping of texts to weights above 0",
        (written("mine.yaml", "prune:\n  calibration:\n    source: [c4, text.txt]\n"),),
    ),
    Mistake(
        "an unknown format of calibration rows",
        "spp prune small.yaml --format chats",
        "--format: prune.calibration.format is 'chats'; must be auto, text, chat, alpaca, "
        "completion or preference. "
        "Did you mean 'chat'?",
    ),
    Mistake(
        "a learning rate below zero",
        "spp finetune small.yaml --learning-rate -1e-3",
        "--learning-rate: finetune.learning_rate is -0.001; must be a number above 0",
    ),
    Mistake(
        "a run that is a path",
        "spp prune small.yaml --run mine/first",
        "--run: run is 'mine/first'; must be letters, digits, '.', '_' and '-', "
        "beginning with a letter or digit",
    ),
    Mistake(
        "an unknown key in --set",
        "spp prune small.yaml --set prune.calibration.sample=3",
        "--set prune.calibration.sample=3: unknown key 'prune.calibration.sample'. "
        "Did you mean 'samples'?",
    ),
    Mistake(
        "a --set without a value",
        "spp prune small.yaml --set prune.sparsity",
        "--set prune.sparsity: must look like prune.calibration.samples=64",
    ),
    Mistake(
        "a --set that is not YAML",
        "spp prune small.yaml --set prune.sparsity=[0.5",
        "--set prune.sparsity=[0.5: prune.sparsity is '[0.5', which is not valid YAML",
    ),
    Mistake(
        "a --set of a section",
        "spp prune small.yaml --set prune=wanda",
        "--set prune=wanda: prune is 'wanda'; must be a section with the keys method, pattern, "
        "sparsity, allocation, include, exclude, refine, recover, calibration, order, offload",
    ),
    Mistake(
        "several mistakes in one file",
        "spp prune mine.yaml",
        "mine.yaml:2: unknown key 'sede'. Did you mean 'seed'?\n"
        f"mine.yaml:4: prune.sparsity is '2:4'; {SHARE}. 2:4 is a pattern: set prune.pattern\n"
        "mine.yaml:5: unknown key 'prune.patern'. Did you mean 'pattern'?\n"
        "mine.yaml:6: eval.limit is 'ten'; must be a whole number of at least 1",
        (
            written(
                "mine.yaml",
                "model: base\nsede: 3\nprune:\n  sparsity: 2:4\n  patern: 2:4\n"
                "eval: {limit: ten}\n",
            ),
        ),
    ),
    Mistake(
        "no for false",
        "spp prune mine.yaml",
        "mine.yaml:3: model.trust_remote_code is 'no'; must be true or false",
        (written("mine.yaml", "model:\n  path: base\n  trust_remote_code: no\n"),),
    ),
    Mistake(
        "a list for a text",
        "spp prune mine.yaml",
        "mine.yaml:1: model.path is ['base']; must be text",
        (written("mine.yaml", "model: {path: [base]}\n"),),
    ),
    Mistake(
        "a list for a section",
        "spp prune mine.yaml",
        "mine.yaml:1: prune is ['wanda']; must be a section with the keys …",
        (written("mine.yaml", "prune: [wanda]\n"),),
    ),
    Mistake(
        "a key given twice",
        "spp prune small.yaml",
        "small.yaml:12: 'model' is given twice, first on line 1. Remove one",
        (added("small.yaml", "model: other"),),
    ),
    Mistake(
        "a glob that YAML takes for an alias",
        "spp prune mine.yaml",
        "mine.yaml:1: not valid YAML: … Put quotes around a text that begins with '*'",
        (written("mine.yaml", "prune: {include: [*.q_proj]}\n"),),
    ),
    Mistake(
        "a tab in the YAML",
        "spp prune mine.yaml",
        "mine.yaml:2: not valid YAML: found character '\\t' that cannot start any token",
        (written("mine.yaml", "prune:\n\tsparsity: 0.5\n"),),
    ),
    Mistake(
        "a character that no text has",
        "spp prune mine.yaml",
        "mine.yaml: not valid YAML: unacceptable character #x0000: …",
        (written("mine.yaml", "seed: 0\0\n"),),
    ),
    Mistake(
        "a section that contains itself",
        "spp prune mine.yaml",
        "mine.yaml: nested too deeply, or an alias that contains itself",
        (written("mine.yaml", "prune: &it {method: *it}\n"),),
    ),
    Mistake(
        "an unknown adapter",
        "spp finetune small.yaml --adapter lorra",
        "--adapter: finetune.adapter is 'lorra'; must be one of spp, … Did you mean 'lora'?",
    ),
    Mistake(
        "a file without keys",
        "spp prune rows.yaml",
        "rows.yaml: must hold keys and values, such as 'seed: 0'",
        (written("rows.yaml", "- prune\n- merge\n"),),
    ),
    Mistake(
        "a file that is not there",
        "spp prune smal.yaml",
        "smal.yaml: no such file. The ready ones are in configs/",
    ),
    Mistake(
        "a folder for a file",
        "spp prune base",
        "base: a folder, not a YAML file. A model's folder is given with --model",
    ),
    Mistake(
        "a binary file",
        "spp prune base/model.safetensors",
        "base/model.safetensors: not UTF-8 text, so it is no YAML file",
    ),
]
