"""The configuration: one frozen model a stage, mirrored by the YAML, unknown keys refused.

Every default, range and one-line description lives here and nowhere else: the command line's help,
the reference in the README and the error messages are all made from these fields.
"""

from __future__ import annotations

import difflib
import importlib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


class Section(BaseModel):
    """A part of the configuration: frozen, strict about types, complete by its defaults.

    A section left empty in the YAML has all its defaults. ``short`` names the key that a text in
    place of the section stands for: ``model: demo`` is ``model: {path: demo}``.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False
    )
    short: ClassVar[str | None] = None

    @model_validator(mode="before")
    @classmethod
    def _spell_out(cls, value: Any) -> Any:
        if value is None:
            return {}
        return {cls.short: value} if cls.short and isinstance(value, str) else value


@dataclass(frozen=True)
class Plugin:
    """Marks a field that names an entry of ``package.TABLE``, with that entry's own keys.

    ``method: sparsegpt`` and ``method: {name: sparsegpt, damping: 0.05}`` both become an object of
    the class that the table names. The package's table is read when it is asked for and the class
    imported when a value is checked, so that ``--help`` never waits for torch.

    A mapping without a name has the keys of ``default``, or is an ``unnamed`` one if that is set:
    an entry whose keys are the user's own words.
    """

    package: str
    kind: str
    default: str
    unnamed: str = ""

    def table(self) -> dict[str, str]:
        """Return "module:Class" by name."""
        table: dict[str, str] = importlib.import_module(self.package).TABLE
        return table

    def load(self, name: str) -> type[BaseModel]:
        """Return the class that ``name`` stands for; KeyError if the table has no such name."""
        module, _, attribute = self.table()[name].partition(":")
        found: type[BaseModel] = getattr(importlib.import_module(module), attribute)
        return found

    def name_in(self, keys: Mapping[str, Any], below: str = "") -> Any:
        """Return the name that a mapping gives or implies.

        Keys of ``below``, the entry that the mapping is put over, change that one.
        """
        if "name" in keys or not self.unnamed:
            return keys.get("name", below or self.default)
        own = self.load(below).model_fields if below in self.table() else {}
        return below if own and keys.keys() <= own.keys() else self.unnamed

    def construct(self, value: Any) -> Any:
        """Return the object that a name, or a mapping of a name and keys, describes."""
        if isinstance(value, BaseModel):
            return value
        keys = {"name": value} if isinstance(value, str) else value
        if not isinstance(keys, Mapping):
            raise PydanticCustomError(
                "plugin", "must be the name of {kind}, or a mapping with a name", vars(self)
            )
        name, names = self.name_in(keys), self.table()
        if not isinstance(name, str) or name not in names:
            allowed = f"{', '.join(names)}{nearest(str(name), names)}"
            raise PydanticCustomError("plugin", "must be one of {allowed}", {"allowed": allowed})
        return self.load(name).model_validate({**keys, "name": name})

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.construct, handler(source))


def nearest(word: str, words: Iterable[str]) -> str:
    """Return ". Did you mean 'x'?" for the word most like ``word``, or nothing."""
    found = difflib.get_close_matches(word, list(words), n=1)
    return f". Did you mean '{found[0]}'?" if found else ""


@dataclass(frozen=True)
class Checked:
    """Marks a text that must pass a check; ``allowed`` says in words what does."""

    passes: Callable[[str], object]
    allowed: str

    def check(self, value: str) -> str:
        """Return ``value`` if it passes."""
        if not self.passes(value):
            raise PydanticCustomError("text", "must be {allowed}", {"allowed": self.allowed})
        return value

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))


@dataclass(frozen=True)
class Mixture:
    """Marks a text, or a mapping of such texts to their weights: which of them, how much of each.

    ``c4`` stays a text; ``{c4: 3, chats.jsonl: 1}`` is three parts of the one, one of the other.
    """

    def check(self, value: Any) -> str | dict[str, float]:
        """Return ``value`` if it is one, its weights as float."""
        if not isinstance(value, str | Mapping):
            raise PydanticCustomError("text", "must be a text or a mapping")
        if not value:
            raise PydanticCustomError("too_short", "must not be empty")
        if isinstance(value, str):
            return value
        for name, weight in value.items():
            if not isinstance(name, str) or not name:
                raise PydanticCustomError(
                    "mixture", "its keys must be texts, and {name} is none", {"name": repr(name)}
                )
            is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not (is_number and 0 < weight < math.inf):
                must = "the weight of {name} must be a number above 0"
                raise PydanticCustomError("mixture", must, {"name": name})
        return {name: float(weight) for name, weight in value.items()}

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.check)


def as_word(text: str) -> str:
    """Return a text as part of a run's name, which has no other signs than '.', '_' and '-'."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text.replace("+", "p")).strip("-._").lower()


def hub_origin(path: str) -> tuple[str, str] | None:
    """Return hub id and commit of a model whose folder lies in a cache of the hub; None if not."""
    *_, repository, snapshots, revision = ("", "", "", *path.rstrip("/").split("/"))
    if snapshots != "snapshots" or not repository.startswith("models--"):
        return None
    return repository.removeprefix("models--").replace("--", "/"), revision


def _own_name(path: str) -> str:
    """Return what a model is called, without the folders that lead to it."""
    found = hub_origin(path)  # its folder is named after a commit
    return found[0] if found else path.rstrip("/").rsplit("/", 1)[-1]


def _at_commas(value: Any) -> Any:
    """Split "a, b" into its parts, so that a list may be written as one text."""
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.split(",") if part.strip()]


def parse_n_of_m(pattern: Any) -> tuple[int, int] | None:
    """Return (kept, of) for "2:4" and its like; None for anything else, "4:2" included."""
    match = re.fullmatch(r"([1-9][0-9]{0,3}):([1-9][0-9]{0,3})", str(pattern))
    kept, of = (int(match[1]), int(match[2])) if match else (0, 0)
    return (kept, of) if kept < of else None


SourceFormat = Literal["auto", "text", "chat", "alpaca", "completion", "preference"]
Length = Annotated[int, Field(ge=8)] | Literal["auto"]
BatchSize = Annotated[int, Field(ge=1)] | Literal["auto"]
Names = Annotated[tuple[str, ...], BeforeValidator(_at_commas), Field(strict=False)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Text = Annotated[str, Field(min_length=1)]
Device = Annotated[
    str, Checked(re.compile(r"auto|cpu|cuda(:[0-9]+)?").fullmatch, "auto, cpu, cuda or cuda:N")
]
Pattern = Annotated[
    str,
    Checked(
        lambda text: text == "unstructured" or parse_n_of_m(text),
        "unstructured, or N:M with 0 < N < M, for example 2:4",
    ),
]
RunName = Annotated[
    str,
    Checked(
        re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*").fullmatch,
        "letters, digits, '.', '_' and '-', beginning with a letter or digit",
    ),
]


DType = Literal["auto", "bfloat16", "float16", "float32"]


class ModelConfig(Section):
    """Which dense model, and how it is held in memory."""

    short = "path"

    path: Text = Field(
        "demo", description="Folder or hub id of the dense model; 'demo' is the embedded one"
    )
    revision: str | None = Field(None, description="Branch, tag or commit on the hub")
    dtype: DType = Field(
        "auto", description="Type of the pruned weights and all later ones; auto: as stored"
    )
    device: Device = Field(
        "auto",
        description="auto, cpu, cuda or cuda:N; auto: the first GPU if there is one",
    )
    trust_remote_code: bool = Field(
        False, description="Run Python code that comes with the model; only for authors you trust"
    )


class TextConfig(Section):
    """Where plain text comes from; shared by everything that reads text."""

    source: Text = Field(
        "auto",
        description="demo, c4, wikitext2, a file of text or rows, a folder of them, or a hub "
        "data set; auto: demo for the embedded model, else c4 (evaluation: wikitext2)",
    )
    subset: str | None = Field(
        None, description="Configuration of a hub data set, for example 'en'"
    )
    split: str | None = Field(
        None, description="Split of a hub data set; default: what the use asks for"
    )
    field: Text = Field("text", description="Key or column of the text, where there are rows")
    sequence_length: Length = Field(
        "auto",
        description="Tokens of a sequence; auto: 2048, or the model's context if that is shorter",
    )


class CalibrationConfig(TextConfig):
    """The text whose activations tell a method which weights matter."""

    # Wider than a text's: several sources, each of which is one.
    source: Annotated[str | dict[str, float], Mixture()] = Field(  # type: ignore[assignment]
        "auto",
        description="demo, c4, wikitext2, a file of text or rows, a folder of them, a hub data "
        "set, or stored tokens; several by weight: {c4: 3, chats.jsonl: 1}; auto: demo for the "
        "embedded model, else c4",
    )
    format: SourceFormat = Field(
        "auto",
        description="text: the key field; chat: messages or instructions in the model's chat "
        "template; alpaca: instructions in Alpaca's; completion: prompt, completion; preference: "
        "prompt, chosen; auto: what the keys of the first row tell",
    )
    samples: int = Field(128, ge=1, description="Number of calibration sequences")
    seed: Seed = Field(0, description="Seed of the draw of sequences")
    batch_size: int = Field(4, ge=1, description="Sequences that pass a block at once")


class PruneConfig(Section):
    """Which weights go, and how they are chosen."""

    method: Annotated[Any, Plugin("spp_cli.pruning", "a pruning method", "wanda")] = Field(
        "wanda", description="Pruning method; in YAML also a mapping of its name and its own keys"
    )
    pattern: Pattern = Field(
        "unstructured",
        description="unstructured, or N:M for N weights kept of every M inputs (2:8 is 75 %)",
    )
    sparsity: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="Share of zeros, between 0 and 1; with N:M it follows from the pattern",
    )
    allocation: Annotated[
        Any, Plugin("spp_cli.allocation", "an allocation", "uniform", unnamed="globs")
    ] = Field(
        "uniform",
        description="How much each layer loses: uniform, owl, sensitivity, or in YAML a mapping of "
        "globs to ratios, of which the first that matches counts; the overall ratio is sparsity",
    )
    include: Names = Field(
        ("*",), min_length=1, description="Globs of linear layers to prune, e.g. '*.mlp.*'"
    )
    exclude: Names = Field(
        (), description="Globs of linear layers to leave dense, e.g. '*.down_proj'"
    )
    refine: Annotated[Any, Plugin("spp_cli.refining", "a refinement", "none")] = Field(
        "none",
        description="Refinement of the mask; in YAML also a mapping of its name and its keys",
    )
    recover: Annotated[Any, Plugin("spp_cli.recovering", "a recovery", "none")] = Field(
        "none",
        description="least-squares: the kept weights are fitted anew to the dense layer's outputs, "
        "after any method and refinement; in YAML also a mapping of its name and its keys",
    )
    calibration: CalibrationConfig = Field(
        default_factory=CalibrationConfig, description="The text whose activations guide the method"
    )
    order: Literal["auto", "one-pass", "two-pass", "dense"] = Field(
        "auto",
        description="two-pass: statistics of a block from its dense weights, as published; "
        "one-pass: each linear as soon as its input is there, in less time; dense: statistics of "
        "all blocks from the dense model, kept for every method and ratio to come; auto: one-pass "
        "up to a sparsity of 50 %, with fista at any, if memory allows",
    )
    offload: Literal["auto", "device", "cpu", "disk"] = Field(
        "auto",
        description="Where activations wait between blocks; auto: on the device if they fit, else "
        "in CPU memory, else on disk",
    )

    @property
    def asking(self) -> tuple[Any, Any, Any]:
        """What decides about weights, and asks to know something of their inputs."""
        return self.method, self.refine, self.recover

    @property
    def reads_text(self) -> bool:
        """Whether anything that decides about weights looks at the calibration text."""
        return any(each.statistic for each in self.asking) or bool(self.allocation.reads_text)

    @model_validator(mode="before")
    @classmethod
    def _sparsity_follows_from_n_of_m(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "sparsity" not in value:
            parsed = parse_n_of_m(value.get("pattern"))
            return {**value, "sparsity": 1 - parsed[0] / parsed[1]} if parsed else value
        return value

    @field_validator("sparsity")
    @classmethod
    def _agrees_with_the_pattern(cls, sparsity: float, info: ValidationInfo) -> float:
        pattern = info.data.get("pattern")
        parsed = parse_n_of_m(pattern)
        if parsed and not math.isclose(sparsity, implied := 1 - parsed[0] / parsed[1]):
            raise PydanticCustomError(
                "pattern",
                "but pattern {pattern} keeps {kept} of every {of}, a sparsity of {implied}. "
                "Leave sparsity out, or choose pattern: unstructured",
                {
                    "pattern": pattern,
                    "kept": parsed[0],
                    "of": parsed[1],
                    "implied": f"{implied:.4g}",
                },
            )
        return sparsity

    @field_validator("allocation")
    @classmethod
    def _is_not_fixed_by_the_pattern(cls, allocation: Any, info: ValidationInfo) -> Any:
        pattern = info.data.get("pattern")
        if parse_n_of_m(pattern) and allocation.name != "uniform":
            raise PydanticCustomError(
                "pattern",
                "but pattern {pattern} gives every layer the same ratio. "
                "Choose pattern: unstructured, or allocation: uniform",
                {"pattern": pattern},
            )
        return allocation


class TrainingDataConfig(Section):
    """The rows to train and validate on, and how they become tokens."""

    source: Text = Field(
        "auto",
        description="demo, a file of rows or text, a folder of them, or a hub data set; auto: "
        "demo for the embedded model, else vicgalle/alpaca-gpt4",
    )
    subset: str | None = Field(None, description="Configuration of a hub data set")
    split: str | None = Field(None, description="Split of a hub data set; default: train")
    field: Text = Field("text", description="Key of the text, for format: text")
    format: SourceFormat = Field(
        "auto",
        description="alpaca: instruction/input/output; chat: messages, or ShareGPT's conversations;"
        " completion: prompt, completion; preference: prompt or messages, chosen, rejected (only "
        "chosen is used); text: packed into blocks; auto: what the keys of the first row tell",
    )
    train_on_prompt: bool = Field(
        True,
        description="Count the loss on the prompt too, as SPP does; false: on the answers alone, "
        "in a chat on every turn of the assistant",
    )
    sequence_length: Length = Field(
        512, description="Longest row in tokens, or the block of packed text"
    )
    samples: int | None = Field(
        None,
        ge=1,
        description="Use only so many rows or blocks; default: all, or what max_steps can use",
    )
    validation_source: Text | None = Field(
        None,
        description="Rows to validate on; default: a part of source, or demo's own held-out text",
    )
    validation_samples: int = Field(128, ge=1, description="Rows or blocks to validate on")
    streaming: bool = Field(
        False,
        description="Read a hub data set as it comes, without downloading all of it; needs samples "
        "or max_steps",
    )
    packing: bool = Field(
        False,
        description="Put several short rows into one sequence, none of which sees another; text "
        "is packed anyway",
    )


class FinetuneConfig(Section):
    """How the weights that stayed learn to make up for those that went."""

    adapter: Annotated[Any, Plugin("spp_cli.adapters", "an adapter", "spp")] = Field(
        "spp", description="Adapter; in YAML also a mapping of its name and its own keys"
    )
    target_modules: Names = Field(
        ("*",), min_length=1, description="Globs of pruned linear layers that get an adapter"
    )
    exclude_modules: Names = Field((), description="Globs of linear layers that get none")
    base_storage: Literal["dense", "packed"] = Field(
        "dense",
        description="How the frozen weights are held; packed: without their zeros, a third of the "
        "memory at 75 %, to the same losses",
    )
    data: TrainingDataConfig = Field(
        default_factory=TrainingDataConfig, description="The rows to train and validate on"
    )
    distill: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the loss that is the distance to the dense model's predictions; the "
        "dense model is then in memory too",
    )
    distill_temperature: float = Field(
        1.0, gt=0, description="Temperature of both predictions in that distance"
    )
    learning_rate: float = Field(
        4e-3, gt=0, description="Peak learning rate; 4e-3 suits 7B, small models want more"
    )
    b_learning_rate_ratio: float = Field(
        1.0,
        gt=0,
        description="Learning rate of each adapter's B, which starts as zero, over that of the "
        "rest",
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="Decay of the learning rate"
    )
    warmup_ratio: float = Field(
        0.03,
        ge=0,
        lt=1,
        description="Share of the steps in which the rate rises to its peak, whatever the schedule",
    )
    weight_decay: float = Field(0.001, ge=0, description="AdamW's weight decay")
    max_grad_norm: float = Field(1.0, gt=0, description="Clip the gradient to this norm")
    batch_size: int = Field(4, ge=1, description="Rows of one step on one device")
    gradient_accumulation_steps: int = Field(
        32, ge=1, description="Steps whose gradients are summed"
    )
    epochs: float = Field(3.0, gt=0, description="Passes over the rows; max_steps overrides it")
    max_steps: int | None = Field(None, ge=1, description="Optimizer steps, whatever epochs says")
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations: less memory, more time"
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Type of the products; auto: float32 on CPU, the model's type on GPU"
    )
    evaluate_every: int | None = Field(
        None, ge=1, description="Steps between validations; default: 5 in all"
    )
    checkpoint_every: int | None = Field(
        None, ge=1, description="Steps between checkpoints; default: as validations"
    )
    check_mask_every: int | None = Field(
        None, ge=1, description="Steps between checks of every zero; default: as validations"
    )
    report_to: Annotated[
        tuple[Literal["tensorboard", "wandb"], ...], BeforeValidator(_at_commas)
    ] = Field((), strict=False, description="Where losses go besides log.jsonl; each is an extra")


class MergeConfig(Section):
    """In which type the merged weights are stored, how they are rounded to it, and the checks."""

    dtype: DType = Field(
        "auto", description="Type of the merged model's weights; auto: that of the pruned model"
    )
    rounding: Literal["auto", "nearest", "stochastic"] = Field(
        "auto",
        description="How merged weights are rounded to that type; nearest: updates smaller than "
        "half a step are lost; stochastic: up or down at random, so that on average all of the "
        "update stays; auto: stochastic in the layers where the nearest would lose a tenth of it",
    )
    check_sequences: int = Field(
        16, ge=1, description="Sequences on which the adapter and the merged model are compared"
    )
    check_length: int = Field(128, ge=8, description="Most tokens in each of them")
    allow_loss: bool = Field(
        False, description="Merge even if rounding takes nearly all of the update away"
    )
    packed: bool = Field(
        False,
        description="Make an archive without the zeros, too, in the folder packed; spp unpack "
        "brings back every bit",
    )


class PerplexityConfig(TextConfig):
    """The text whose perplexity is measured."""

    max_chunks: int | None = Field(
        None, ge=1, description="Stop after so many chunks; default: the whole text"
    )


class EvalConfig(Section):
    """What is measured, on which stages."""

    tasks: Names = Field(
        ("perplexity",),
        min_length=1,
        description="perplexity, zeroshot, mmlu, next-line, or tasks of lm-evaluation-harness",
    )
    stages: Annotated[
        tuple[Literal["dense", "prune", "finetune", "merge"], ...], BeforeValidator(_at_commas)
    ] = Field(
        ("dense", "prune", "finetune", "merge"),
        strict=False,
        min_length=1,
        description="Stages to evaluate; those that are not there yet are left out",
    )
    perplexity: PerplexityConfig = Field(
        default_factory=PerplexityConfig, description="The text whose perplexity is measured"
    )
    num_fewshot: int | None = Field(
        None,
        ge=0,
        description="Solved examples before each question; default: what the task's file says, "
        "else 5 for mmlu and none for others",
    )
    chat_template: bool = Field(
        False, description="Put each question to the model in its tokenizer's chat template"
    )
    limit: int | None = Field(None, ge=1, description="Only the first so many questions of a task")
    batch_size: BatchSize = Field(
        "auto",
        description="Sequences at once; auto: as many as the GPU's memory holds, 8 on a CPU",
    )
    task_folder: Text | None = Field(None, description="Folder with task YAMLs of your own")
    data_folder: Text | None = Field(
        None, description="Folder with copies of hub data sets: DATA_FOLDER/owner/name/…"
    )


class SppConfig(Section):
    """The whole: what a YAML file may say, and what a run without one means."""

    model: ModelConfig = Field(default_factory=ModelConfig, description="The dense model")
    workspace: Text = Field(
        "workspace", description="Folder of all runs; $SPP_WORKSPACE sets the default"
    )
    run: RunName | None = Field(
        None, description="Name of the run; default: model, method and pattern"
    )
    trust_files: bool = Field(
        False,
        description="Do not compare what earlier stages have left with the digests on record",
    )
    seed: Seed = Field(0, description="Seed of everything drawn at random but the calibration")
    prune: PruneConfig = Field(default_factory=PruneConfig, description="spp prune")
    finetune: FinetuneConfig = Field(default_factory=FinetuneConfig, description="spp finetune")
    merge: MergeConfig = Field(default_factory=MergeConfig, description="spp merge")
    eval: EvalConfig = Field(default_factory=EvalConfig, description="spp eval")

    def run_name(self) -> str:
        """Return ``run``, or a name made of the model, the method and the pattern."""
        if self.run:
            return self.run
        model = as_word(_own_name(self.model.path))
        pattern = self.prune.pattern
        amount = f"{self.prune.sparsity:g}"
        if pattern != "unstructured":
            amount = pattern.replace(":", "of")
        return f"{model or 'model'}-{as_word(self.prune.method.name)}-{amount}"
