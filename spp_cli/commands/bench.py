"""spp bench: what a sparse model gains on this machine."""

from __future__ import annotations

from spp_cli.commands.command import Command, Given, asked, flag_parameter, workspace_of
from spp_cli.commands.parameters import WORKSPACE, argument, count, option, with_default
from spp_cli.errors import ConfigError
from spp_cli.flags import FLAGS
from spp_cli.named_models import NamedModel, find, folder_model, run_models
from spp_cli.progress import Reporter
from spp_cli.reporting.answer import Answer
from spp_cli.reporting.bench_table import bench_table

__all__ = ["BENCH"]

_BATCH_SIZES = "1,8"


def _bench(given: Given, reporter: Reporter) -> Answer:
    sizes = _batch_sizes(given["batch_sizes"])
    model = _model(given, reporter)
    from spp_cli.benchmarking.bench import bench
    from spp_cli.benchmarking.worker import Subject
    from spp_cli.models.context import context_of
    from spp_cli.models.loading import load_config, resolve_device

    trusted = model.config.model.trust_remote_code
    prompt, new = given["prompt_length"], given["new_tokens"]
    context = context_of(load_config(model.folder, trust_remote_code=trusted))
    if context and prompt + new + 1 > context:
        raise ConfigError(
            f"--prompt-length is {prompt} and --new-tokens {new}; {model.name} sees {context} "
            f"tokens, one of which ends the prefill. Choose at most {context - 1} together"
        )
    device = resolve_device(model.config.model.device)
    subject = Subject(model.folder, device, trusted, prompt, new)
    measured = bench(subject, sizes, given["repeats"], reporter)
    document = {"model": model.name, "folder": str(model.folder), **measured}
    return Answer(document, bench_table(document))


def _batch_sizes(text: str) -> list[int]:
    """Return the batch sizes, each once, the smallest first: memory is then measured upwards."""
    try:
        sizes = sorted({int(size) for size in text.split(",")})
    except ValueError:
        sizes = [0]
    if sizes[0] < 1:
        raise ConfigError(
            f"--batch-sizes is {text!r}; must be whole numbers from 1, for example {_BATCH_SIZES}"
        )
    return sizes


def _model(given: Given, reporter: Reporter) -> NamedModel:
    """Return the model that PATH names; of a run the merged one, or else the pruned one."""
    path, flags = given["path"], asked(FLAGS["bench"], given)
    place = find(workspace_of(given), path)
    if place.run is None:
        return folder_model(path, flags)
    stage = place.stage or ("merge" if place.run.stage("merge") else "prune")
    if stage == "finetune":
        raise ConfigError(
            f"{path} is an adapter, which a merge takes away. "
            f"Measure the merged model, or the pruned one, which is as fast: {place.run.name}/prune"
        )
    return run_models(place.run, [stage], flags, reporter)[0]


BENCH = Command(
    [
        argument("path", "A run, RUN/STAGE, a model's folder or hub id", metavar="PATH"),
        option(
            "batch_sizes",
            with_default("Batch sizes", _BATCH_SIZES),
            metavar="INTEGER,...",
            default=_BATCH_SIZES,
        ),
        count("prompt_length", "Tokens of a prompt", default=64),
        count("new_tokens", "Tokens decoded after it", default=16),
        count("repeats", "Measurements of each, of which the median counts", default=5),
        *map(flag_parameter, FLAGS["bench"]),
        WORKSPACE,
    ],
    _bench,
)
