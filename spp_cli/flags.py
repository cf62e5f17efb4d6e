"""The options of each command: the key of the configuration that each one sets, and its panel.

Help text, default and kind of value come from the key's field; a flag adds a name and a panel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic.fields import FieldInfo

from spp_cli import fields
from spp_cli.settings import demo_defaults, parse_value

__all__ = ["FLAGS", "Flag"]


@dataclass(frozen=True)
class Flag:
    """One option: ``--learning-rate`` sets ``finetune.learning_rate``.

    ``help`` and ``metavar`` are given only for keys of a method or an adapter, whose field would
    need torch to look at.
    """

    panel: str
    key: str
    name: str = ""
    help: str = ""
    metavar: str = ""

    @property
    def option(self) -> str:
        """The option as typed, ``--learning-rate``."""
        return self.name or f"--{self.key.rpartition('.')[2].replace('_', '-')}"

    @property
    def field(self) -> FieldInfo | None:
        """The field behind the key; None for keys of a method or an adapter."""
        return fields.find(tuple(self.key.split(".")))

    @property
    def description(self) -> str:
        """What help says of it."""
        return self.help or (self.field.description if self.field else None) or ""

    @property
    def default(self) -> str:
        """What happens without it, as help shows it; empty where the description says it."""
        if self.field is None:
            return ""
        value = fields.default(self.field)
        plain = "" if value is None else "none" if value == [] else fields.as_text(value)
        plain = plain.replace(",", ", ")
        demo = demo_defaults().get(self.key)
        if fields.plugin(self.field) and isinstance(demo, dict):
            demo = demo["name"]
        if demo is None or demo == value:
            return plain
        return f"{plain}; embedded model: {fields.as_text(demo).replace(',', ', ')}".lstrip("; ")

    @property
    def value(self) -> str:
        """What kind of value it takes, as help shows it."""
        if self.field is None or self.metavar:
            return self.metavar
        return _metavar(self.field)

    @property
    def is_switch(self) -> bool:
        """Whether it is a pair --this and --no-this, without a value."""
        return self.field is not None and self.field.annotation is bool

    @property
    def is_list(self) -> bool:
        """Whether it may be given more than once."""
        return self.field is not None and fields.holds_list(self.field)

    def assignment(self, given: Any) -> tuple[str, Any, str]:
        """Return (key, value, origin) for what the command line holds."""
        if self.is_switch:
            return self.key, given, self.option if given else self.option.replace("--", "--no-", 1)
        text = ",".join(given) if self.is_list else given
        return self.key, parse_value(self.key, text, self.option), self.option


@cache
def _metavar(field: FieldInfo) -> str:
    chooses = fields.plugin(field)
    words = fields.choices(field) or (list(chooses.table()) if chooses else [])
    if fields.holds_list(field):
        return "|".join(words) if words else "TEXT,…"
    if "a whole number" in fields.allowed(field):
        return "|".join(["INTEGER", *words])
    if "a number" in fields.allowed(field):
        return "NUMBER"
    return "|".join(words) or "TEXT"


_MODEL = (
    Flag("Model", "model.path", "--model"),
    Flag("Model", "model.revision"),
    Flag("Model", "model.trust_remote_code"),
)
_DEVICE = (Flag("Model", "model.device"),)
_DTYPE = (Flag("Model", "model.dtype"),)
_TRUST = Flag("Run", "trust_files")
_LOADING = (
    Flag("Model", "model.device"),
    Flag("Model", "model.trust_remote_code"),
    _TRUST,
)
_RUN = (Flag("Run", "workspace"), Flag("Run", "run"), Flag("Run", "seed"))
_CALIBRATION = (
    Flag("Calibration", "prune.calibration.source", "--calibration"),
    Flag("Calibration", "prune.calibration.format"),
    Flag("Calibration", "prune.calibration.samples"),
    Flag("Calibration", "prune.calibration.sequence_length"),
)
_PRUNE = (
    Flag("Pruning", "prune.method"),
    Flag("Pruning", "prune.sparsity"),
    Flag("Pruning", "prune.pattern"),
    Flag("Pruning", "prune.allocation"),
    Flag("Pruning", "prune.refine"),
    Flag("Pruning", "prune.recover"),
    Flag("Pruning", "prune.order"),
    Flag("Pruning", "prune.include"),
    Flag("Pruning", "prune.exclude"),
    *_CALIBRATION,
)
_FINETUNE = (
    Flag("Adapter", "finetune.adapter"),
    Flag(
        "Adapter",
        "finetune.adapter.r",
        help="Key r of the adapter; for spp the number of row groups, by default 16",
        metavar="INTEGER",
    ),
    Flag(
        "Adapter",
        "finetune.adapter.scale",
        help="Key scale of the adapter; for spp the factor of its product, by default 2",
        metavar="NUMBER",
    ),
    Flag("Adapter", "finetune.base_storage"),
    Flag("Adapter", "finetune.target_modules"),
    Flag("Adapter", "finetune.exclude_modules"),
    Flag("Data", "finetune.data.source", "--data"),
    Flag("Data", "finetune.data.format"),
    Flag("Data", "finetune.data.sequence_length"),
    Flag("Data", "finetune.data.samples"),
    Flag("Data", "finetune.data.train_on_prompt"),
    Flag("Data", "finetune.data.packing"),
    Flag("Data", "finetune.data.streaming"),
    Flag("Data", "finetune.data.validation_source", "--validation"),
    Flag("Training", "finetune.distill"),
    Flag("Training", "finetune.learning_rate"),
    Flag("Training", "finetune.schedule"),
    Flag("Training", "finetune.warmup_ratio"),
    Flag("Training", "finetune.weight_decay"),
    Flag("Training", "finetune.batch_size"),
    Flag("Training", "finetune.gradient_accumulation_steps", "--accumulation"),
    Flag("Training", "finetune.epochs"),
    Flag("Training", "finetune.max_steps"),
    Flag("Training", "finetune.precision"),
    Flag("Training", "finetune.gradient_checkpointing"),
    Flag("Training", "finetune.evaluate_every"),
    Flag("Training", "finetune.checkpoint_every"),
    Flag("Training", "finetune.report_to"),
)
_MERGE = (
    Flag("Result", "merge.dtype"),
    Flag("Result", "merge.rounding"),
    Flag("Result", "merge.packed"),
    Flag("Check", "merge.allow_loss"),
    Flag("Check", "merge.check_sequences"),
    Flag("Check", "merge.check_length"),
)
_EVAL = (
    Flag("Evaluation", "eval.tasks"),
    Flag("Evaluation", "eval.stages", "--stage"),
    Flag("Evaluation", "eval.limit"),
    Flag("Evaluation", "eval.num_fewshot"),
    Flag("Evaluation", "eval.chat_template"),
    Flag("Evaluation", "eval.batch_size"),
    Flag("Evaluation", "eval.perplexity.source", "--text"),
    Flag("Evaluation", "eval.perplexity.sequence_length"),
    Flag("Evaluation", "eval.task_folder"),
    Flag("Evaluation", "eval.data_folder", "--from"),
)

FLAGS: dict[str, tuple[Flag, ...]] = {
    "calibrate": (
        *_MODEL,
        *_CALIBRATION,
        Flag("Calibration", "prune.calibration.seed"),
        Flag("Run", "workspace"),
    ),
    "prune": (*_MODEL, *_DEVICE, *_DTYPE, *_PRUNE, *_RUN, _TRUST),
    "finetune": (*_FINETUNE, *_DEVICE, *_RUN, _TRUST),
    "merge": (*_MERGE, *_DEVICE, *_RUN, _TRUST),
    "eval": (*_EVAL, *_DEVICE, *_RUN, _TRUST),
    "data check": (
        Flag("Evaluation", "eval.tasks"),
        Flag("Evaluation", "eval.num_fewshot"),
        Flag("Evaluation", "eval.task_folder"),
        Flag("Evaluation", "eval.data_folder", "--from"),
        Flag("Model", "model.path", "--model"),
    ),
    "plan": (*_MODEL, *_DEVICE, *_DTYPE, *_PRUNE, *_RUN),
    "generate": _LOADING,
    "bench": _LOADING,
    "sweep": (Flag("Run", "workspace"),),
    "run": (*_MODEL, *_DEVICE, *_DTYPE, *_PRUNE[:4], *_RUN, _TRUST),
}
