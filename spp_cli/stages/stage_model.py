"""The whole model of a stage, on its device: for eval, report and generate."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from spp_cli.config import SppConfig
from spp_cli.models.checkpoint import Checkpoint
from spp_cli.models.loading import LoadModel, compute_dtype, load_model, resolve_device
from spp_cli.stages.sparse_model import adapted_model
from spp_cli.stages.stage import Sources

__all__ = ["distinct_stages", "folder_loader", "loader", "model_folder"]


def distinct_stages(sources: Sources) -> list[str]:
    """Return the stages that have a model of their own, the dense one first.

    Of a finetuned and a merged model, which say the same, the merged one counts.
    """
    stages = ["dense", *(stage for stage in ("prune", "merge") if stage in sources.stages)]
    if "merge" not in stages and {"prune", "finetune"} <= set(sources.stages):
        stages.append("finetune")
    return stages


def model_folder(sources: Sources, stage: str) -> Path:
    """Return the folder that holds config and tokenizer of a stage's model.

    An adapter's folder holds neither: its base's does.
    """
    return {"dense": sources.model, **sources.stages}["prune" if stage == "finetune" else stage]


def loader(config: SppConfig, sources: Sources, stage: str) -> LoadModel:
    """Return what loads the model of a stage, the dense one included, onto its device."""
    if stage != "finetune":
        return folder_loader(config, model_folder(sources, stage))
    device = resolve_device(config.model.device)
    return lambda: (
        adapted_model(
            sources.stages["prune"],
            sources.stages["finetune"],
            device=device,
            dtype=compute_dtype(device),
            trust_remote_code=config.model.trust_remote_code,
        ).model
    )


def folder_loader(config: SppConfig, folder: Path) -> LoadModel:
    """Return what loads the model of any folder onto the device of ``config``."""

    def load() -> PreTrainedModel:
        device = resolve_device(config.model.device)
        trusted = config.model.trust_remote_code
        dtype = compute_dtype(device)
        model = load_model(Checkpoint(folder), dtype=dtype, trust_remote_code=trusted)
        return model.to(device)

    return load
