"""Models and tokenizers from a checkpoint folder, through plain transformers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
)

from spp_cli import processes
from spp_cli.errors import ConfigError, ModelError
from spp_cli.models.checkpoint import Checkpoint, read_config
from spp_cli.models.experts import take_apart
from spp_cli.models.quantized import refuse_quantized

__all__ = [
    "LoadModel",
    "compute_dtype",
    "empty_model",
    "load_config",
    "load_model",
    "load_tokenizer",
    "quiet",
    "resolve_device",
]

LoadModel = Callable[[], PreTrainedModel]

_MOST_LAYERS = 4096  # of a model of which no weights are there to count
_COPY_TOKENIZER = "Copy its files (tokenizer.json, tokenizer_config.json) beside config.json"
_TOKENIZERS = ("tokenizer*", "vocab*", "*.model", "tekken.json", "*.tiktoken")


def load_config(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """Return the transformers config of a decoder-only language model.

    Raises:
        ModelError: of another kind of model, or unreadable.
    """
    with quiet():
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        except Exception as error:  # the library's code may fail on a file in any way
            problem = _one_line(error)
            if "trust_remote_code" in str(error):
                problem = (
                    "this model needs Python code of its own. If you trust it, "
                    "set model.trust_remote_code"
                )
            raise ModelError(f"{folder}/config.json: {problem}") from error
    refuse_quantized(folder, read_config(folder))
    architectures = getattr(config, "architectures", None) or []
    if not (isinstance(architectures, list) and all(isinstance(it, str) for it in architectures)):
        raise ModelError(
            f"{folder}/config.json: architectures is {architectures!r}; must be a list of names"
        )
    has_remote_code = trust_remote_code and hasattr(config, "auto_map")
    if config.is_encoder_decoder or (
        architectures and not has_remote_code and not _is_generative(config, architectures)
    ):
        raise ModelError(
            f"{folder} is a {architectures[0] if architectures else config.model_type}; "
            "spp prunes decoder-only language models (…ForCausalLM)"
        )
    return config


def _is_generative(config: Any, architectures: Collection[str]) -> bool:
    """Whether AutoModelForCausalLM makes of ``config`` the decoder that was trained.

    That is a class of its mapping, or the text part of a model that sees or hears, too. What was
    trained to classify, or to fill gaps, may have a configuration in the mapping all the same.
    """
    if set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()).intersection(architectures):
        return True
    conditional = any(name.endswith("ForConditionalGeneration") for name in architectures)
    return conditional and type(config) in MODEL_FOR_CAUSAL_LM_MAPPING


def load_model(
    checkpoint: Checkpoint, *, dtype: torch.dtype | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Return the model on the CPU, in evaluation mode, its weights as stored or cast to ``dtype``.

    The experts of a mixture are linears of their own.

    Raises:
        ModelError: not a decoder-only language model, or the weights do not fit the config.
    """
    config = load_config(checkpoint.folder, trust_remote_code=trust_remote_code)
    _check_layers(checkpoint, config)
    with quiet():
        try:
            model, report = AutoModelForCausalLM.from_pretrained(
                checkpoint.folder,
                dtype=dtype or "auto",
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are told below
            )
        except Exception as error:
            _raise_out_of_memory(error)
            raise ModelError(f"{checkpoint.folder} cannot be loaded: {_one_line(error)}") from error
    # Weights that are missing or do not fit are made up at random by transformers.
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{checkpoint.folder}: {len(missing)} weights that config.json asks for are missing, "
            f"the first is {missing[0]}. Copy or download the model anew"
        )
    if mismatched := sorted(report["mismatched_keys"]):
        name, stored, asked = mismatched[0]
        raise ModelError(
            f"{checkpoint.folder}: {name} is {tuple(stored)}, and config.json asks for "
            f"{tuple(asked)}. Copy or download the model anew"
        )
    take_apart(model)
    return model.eval()


def empty_model(checkpoint: Checkpoint, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Return the model of a checkpoint without its weights: they are on the meta device.

    Buffers are real: tables of rotary embeddings, for example, are in no checkpoint.

    Raises:
        ModelError: not a decoder-only language model.
    """
    config = load_config(checkpoint.folder, trust_remote_code=trust_remote_code)
    _check_layers(checkpoint, config)
    with quiet(), init_empty_weights(include_buffers=False):
        try:
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        except Exception as error:
            raise ModelError(f"{checkpoint.folder} cannot be built: {_one_line(error)}") from error
    model.tie_weights()  # what is moved to the meta device one by one is no longer the same
    take_apart(model)
    return model.eval()


def _check_layers(checkpoint: Checkpoint, config: Any) -> None:
    """Refuse more layers than there are weights, before all of them are built.

    Raises:
        ModelError: there are.
    """
    asked = getattr(config.get_text_config(), "num_hidden_layers", None)
    most = len(checkpoint.locations) or _MOST_LAYERS
    if isinstance(asked, int) and asked > most:
        raise ModelError(
            f"{checkpoint.folder}/config.json: num_hidden_layers is {asked}, and there are weights "
            f"of at most {most}. Copy or download the model again"
        )


def _raise_out_of_memory(error: Exception) -> None:
    """Leave it to the caller to say that memory did not suffice: the model is not to blame."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        raise error


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """Return the tokenizer of a checkpoint folder.

    Raises:
        ModelError: there is none.
    """
    if not any(path for pattern in _TOKENIZERS for path in folder.glob(pattern)):
        raise ModelError(f"{folder} has no tokenizer. {_COPY_TOKENIZER}")
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        except Exception as error:
            raise ModelError(
                f"{folder} has no usable tokenizer: {_one_line(error)}. {_COPY_TOKENIZER}"
            ) from error
    longest = getattr(tokenizer, "model_max_length", 0)
    if isinstance(longest, bool) or not isinstance(longest, int | float | None):
        raise ModelError(
            f"{folder}/tokenizer_config.json: model_max_length is {longest!r}; must be a number. "
            "Mend it, or drop the key"
        )
    if not len(tokenizer):
        raise ModelError(
            f"{folder} has no usable tokenizer: its vocabulary is empty. {_COPY_TOKENIZER}"
        )
    return tokenizer


def resolve_device(device: str) -> torch.device:
    """Return the torch device; "auto" is the first GPU if there is one.

    Of several processes on this machine each has a GPU of its own.

    Raises:
        ConfigError: a GPU that is not there.
    """
    if device == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        if processes.count() == 1:
            return torch.device("cuda")
        # Of all processes here, so that all of them find the same.
        if (wanted := processes.count_here()) > (found := torch.cuda.device_count()):
            raise ConfigError(
                f"there are {wanted} processes on this machine, and torch sees {found} GPUs. "
                f"Start {found}, or set model.device to cpu"
            )
        return torch.device(f"cuda:{processes.local_number()}")
    chosen = torch.device(device)
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"model.device is {device!r}, and torch sees {torch.cuda.device_count()} GPUs here. "
            "Choose auto or cpu"
        )
    return chosen


def compute_dtype(device: torch.device) -> torch.dtype | None:
    """Return the type to compute in: float32 on a CPU, where it is fastest; else as stored.

    The weights' values are those stored either way.
    """
    return torch.float32 if device.type == "cpu" else None


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if len(text) > 300:
        text = text[:300].rpartition(". ")[0] or text[:300]
    return text.rstrip(".")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' own bars and advice off the terminal; what matters is raised."""
    verbosity = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity(logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()
