"""A model card in Markdown, with the front matter that the hub reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from spp_cli import yaml12
from spp_cli.reporting.comparison_table import in_markdown, markdown
from spp_cli.reporting.story import METHODS, made, source_name
from spp_cli.reporting.tables import evaluation_cells

__all__ = ["card"]

_HUB = "https://huggingface.co"
_MODEL = "path/to/this/folder"  # in examples, of a model that has no name on the hub


def card(model: Mapping[str, Any]) -> str:
    """Return the card of a sparse model.

    ``model`` has:

    - ``title``; ``base``, the name of the dense model, and ``origin``, what was known of it when it
      was pruned, see ``spp_cli.models.origin``; ``licences``, the names of its licence's files;
    - ``run``, ``stage`` (prune or merge) and ``packed``, whether it is the archive of a model;
      ``repository``, "owner/name", or None for a folder on a disk;
    - ``settings`` by section, and ``manifests`` by stage, of those it was made by;
    - ``datasets`` of the hub that were read for it; ``results``, a results.json, or None;
    - ``facts``: versions, machine and digests by name.

    What is not on record is not told.
    """
    parts = [
        f"# {in_markdown(model['title'])}",
        *map(in_markdown, made(model["manifests"], model["base"])),
        "## What it is",
        _listed(dict(_recipe(model))),
        "## Results",
        *_results(model["results"]),
        "## How to load it",
        *_loading(model),
        "## Its zeros",
        *_zeros(model),
        "## How it was made",
        *_commands(model),
        "## Licence",
        _licence(model),
    ]
    return f"---\n{yaml12.dump(_front_matter(model))}---\n\n" + "\n\n".join(parts) + "\n"


def _front_matter(model: Mapping[str, Any]) -> dict[str, Any]:
    origin, prune = model["origin"], model["settings"]["prune"]
    pattern = prune["pattern"]
    tags = ["sparse", "pruned", "spp", prune["method"]["name"]]
    is_plain = not model["packed"]
    found = {
        "base_model": origin.get("hub_id"),
        "license": origin.get("license", "unknown"),
        "license_name": origin.get("license_name"),
        "license_link": _license_link(model),
        "language": origin.get("language"),
        "library_name": "transformers" if is_plain else None,
        "pipeline_tag": "text-generation" if is_plain else None,
        "tags": [*tags, *([pattern] if ":" in pattern else [])],
        "datasets": model["datasets"],
    }
    return {key: value for key, value in found.items() if value}


def _license_link(model: Mapping[str, Any]) -> str | None:
    """Return the base's link, which may be relative: to a file that was copied, or to its own."""
    origin = model["origin"]
    link: str | None = origin.get("license_link")
    if not link or link in model["licences"] or link.startswith("http"):
        return link
    return f"{_HUB}/{origin['hub_id']}/blob/main/{link}" if "hub_id" in origin else None


def _recipe(model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what was done, name and value."""
    settings, manifests, origin = model["settings"], model["manifests"], model["origin"]
    prune, own = settings["prune"], manifests[model["stage"]]
    revision = f", revision {origin['revision']}" if "revision" in origin else ""
    yield "base", f"{model['base']}{revision}"
    if digest := manifests.get("prune", {}).get("settings", {}).get("model", {}).get("digest"):
        yield "digest of the base", f"{digest}…, SHA-256"
    name = prune["method"]["name"]
    yield "pruning method", _setting({**prune["method"], "name": METHODS.get(name, name)})
    yield "refinement of the mask", _setting(prune["refine"])
    if "recover" in prune:  # which a model pruned before there was any has not
        yield "recovery of the weights", _setting(prune["recover"])
    yield "pattern", _pattern(prune["pattern"])
    linears = f", of {own['metrics']['linears']} linear layers" if model["stage"] == "prune" else ""
    yield "sparsity", f"{own['metrics']['sparsity']!r} of the weights that were pruned{linears}"
    yield from _blocks(own["metrics"])
    yield "allocation of the zeros", _setting(prune["allocation"])
    if calibration := manifests.get("prune", {}).get("metrics", {}).get("calibration"):
        yield "calibration", _calibration(calibration, prune)
    if trained := manifests.get("finetune"):
        yield from _training(settings["finetune"], trained["metrics"])
    if cost := own["metrics"].get("rounding"):
        yield "type and rounding", f"{cost['dtype']}, {_rounded(cost['layers'])}"
    yield "digest of the keep masks", own["mask_digest"]


def _blocks(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what is known of the decoder blocks as a whole, which older records do not say."""
    if "block_sparsity" in metrics:
        yield (
            "sparsity of the blocks",
            f"{metrics['block_sparsity']!r} of all their weights",
        )
    if dense := metrics.get("dense"):
        kinds = (f"{name} ({entry['why']})" for name, entry in dense.items())
        yield "stays dense", ", ".join(kinds)


def _rounded(layers: Mapping[str, int]) -> str:
    return ", ".join(f"{how} in {count} layers" for how, count in layers.items())


def _pattern(pattern: str) -> str:
    kept, colon, group = pattern.partition(":")
    return f"{pattern}, {kept} weights kept of every {group}" if colon else pattern


def _calibration(tokens: Mapping[str, Any], prune: Mapping[str, Any]) -> str:
    return (
        f"{tokens['samples']:,} × {tokens['length']:,} tokens of {source_name(tokens['source'])}, "
        f"seed {prune['calibration']['seed']}, digest {tokens['digest'][:16]}…"
    )


def _training(settings: Mapping[str, Any], metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    rows = metrics["train"]
    yield "adapter", _setting(settings["adapter"])
    yield (
        "training data",
        f"{rows['rows']:,} rows, {rows['tokens']:,} tokens, of {source_name(rows['source'])}, "
        f"digest {rows['digest'][:16]}…",
    )
    each = f" of {metrics['rows_per_step']:,} rows" if metrics.get("rows_per_step") else ""
    keys = ("learning_rate", "schedule", "warmup_ratio", "weight_decay")
    chosen = [f"{key.replace('_', ' ')} {_plain(settings[key])}" for key in keys if key in settings]
    if settings.get("distill"):
        chosen.append(f"distillation from the dense model {_plain(settings['distill'])}")
    yield "training", ", ".join([f"{metrics['steps']:,} steps{each}", *chosen])


def _setting(value: Any) -> str:
    """Return "spp (r 16, scale 2)": a choice of the configuration by its name, then its keys."""
    if not isinstance(value, Mapping):
        return _plain(value)
    keys = ", ".join(f"{key} {_plain(item)}" for key, item in value.items() if key != "name")
    return " ".join(filter(None, [str(value.get("name", "")), f"({keys})" if keys else ""]))


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _results(results: Mapping[str, Any] | None) -> Iterator[str]:
    if not results:
        yield "Not measured yet."
        return
    header, rows, notes = evaluation_cells(results)
    if not header[-1]:
        header, rows = header[:-1], [row[:-1] for row in rows]
    yield markdown(header, rows, notes)
    yield (
        "Perplexity is better when lower, accuracy (acc) when higher, ± its standard error. "
        "Sparsity is that of all linear layers in decoder blocks."
        + (" Recovered is the share of what pruning lost that came back." if header[-1] else "")
    )
    measured: dict[str, Mapping[str, Any]] = {}
    for each in results["models"].values():
        measured |= each["results"]
    yield _listed({name: _way(found) for name, found in measured.items()})


def _way(found: Mapping[str, Any]) -> str:
    """Return how a number was measured: without that it cannot be compared."""
    if "nats" in found:
        return (
            f"{found['tokens']:,} tokens of {source_name(found['source'])} in sequences of "
            f"{found['length']:,} without overlap"
        )
    if "tasks" in found:
        return f"the mean of acc over {', '.join(found['tasks'])}"
    return (
        f"{found['samples']:,} questions, {found['num_fewshot']} shots, version "
        f"{found['version']}, lm-evaluation-harness {found['harness']}"
    )


def _loading(model: Mapping[str, Any]) -> Iterator[str]:
    name = model["repository"] or _MODEL
    if model["packed"]:
        yield (
            "This is an archive: the weights without their zeros, to be stored and sent. "
            "`spp unpack` brings back every bit of a plain model folder."
        )
        fetch = f"hf download {name} --local-dir archive\n" if model["repository"] else ""
        yield _fenced(f"{fetch}spp unpack {'archive' if fetch else name} model")
        name = "model"
    trust = ", trust_remote_code=True" * model["settings"]["model"]["trust_remote_code"]
    yield _fenced(
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{name}", dtype="auto"{trust})\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{name}"{trust})',
        "python",
    )
    code = ", and the base's own code, which is in the folder, runs" if trust else ""
    yield (
        f"Nothing but transformers is needed{code}. The zeros are stored like other numbers: as "
        "the model stands it is as large as the dense one, and as fast."
    )


def _zeros(model: Mapping[str, Any]) -> Iterator[str]:
    name, pattern = model["repository"], model["settings"]["prune"]["pattern"]
    yield (
        "`keep_masks.safetensors` says, one bit a weight, where the zeros have to be, and "
        "`spp_sparsity.json` how many there are in each layer. This checks both:"
    )
    fetch = f"hf download {name} --local-dir model\n" if name and not model["packed"] else ""
    folder = "model" if fetch or model["packed"] else _MODEL
    yield _fenced(f"{fetch}spp verify {folder}{f' --pattern {pattern}' * (':' in pattern)}")


def _commands(model: Mapping[str, Any]) -> Iterator[str]:
    run = model["run"]
    stages = [*model["manifests"], *(["eval"] if model["results"] else [])]
    lines = [f"spp {stage} {run}.yaml" for stage in stages]
    yield _fenced("\n".join([f"# the configuration below, saved as {run}.yaml", *lines]))
    yield _details("Configuration", _fenced(yaml12.dump(model["settings"]).rstrip(), "yaml"))
    yield _details("Versions, machine and digests", _listed(model["facts"]))


def _licence(model: Mapping[str, Any]) -> str:
    origin, base = model["origin"], in_markdown(model["base"])
    texts = ", ".join(f"[{name}]({name})" for name in model["licences"])
    if "license" not in origin:
        known = f"its terms are in {texts}" if texts else "with the base came no licence either"
        return (
            f"Unknown: no card of {base} names a licence, and {known}. "
            "Find out what holds before you pass this model on."
        )
    license = origin["license"]
    names = [license] if isinstance(license, str) else license
    name = in_markdown(str(origin.get("license_name") or ", ".join(map(str, names))))
    link = _license_link(model)
    where = texts or (f"[{link}]({link})" if link else "")
    return f"That of {base}: {name}{f', see {where}' if where else ''}. It holds here, too."


def _listed(facts: Mapping[str, str]) -> str:
    return "\n".join(f"- **{in_markdown(name)}:** {in_markdown(it)}" for name, it in facts.items())


def _fenced(text: str, language: str = "") -> str:
    return f"```{language}\n{text}\n```"


def _details(summary: str, content: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{content}\n\n</details>"
