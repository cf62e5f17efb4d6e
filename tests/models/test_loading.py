"""Models come in through plain transformers, and what is no model for spp is refused by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from conftest import add_tokenizer, change_config
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from spp_cli.errors import ConfigError, ModelError
from spp_cli.models.checkpoint import SINGLE, Checkpoint
from spp_cli.models.loading import (
    compute_dtype,
    empty_model,
    load_config,
    load_model,
    load_tokenizer,
    quiet,
    resolve_device,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SMALL = {"vocab_size": 64, "num_hidden_layers": 1}


def encoder(folder: Path) -> None:
    config = transformers.BertConfig(**SMALL, hidden_size=16, num_attention_heads=2)
    transformers.BertForMaskedLM(config).save_pretrained(folder)


def encoder_and_decoder(folder: Path) -> None:
    config = transformers.T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1)
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)


def classifier(folder: Path) -> None:
    config = transformers.LlamaConfig(
        **SMALL, hidden_size=16, intermediate_size=16, num_attention_heads=2
    )
    transformers.LlamaForSequenceClassification(config).save_pretrained(folder)


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(None, torch.bfloat16), (torch.float32, torch.float32), (torch.float16, torch.float16)],
)
def test_weights_come_as_stored_or_cast(
    dtype: torch.dtype | None, expected: torch.dtype, tiny_model: Callable[..., Path]
) -> None:
    checkpoint = Checkpoint(tiny_model("llama", torch.bfloat16))
    model = load_model(checkpoint, dtype=dtype)
    assert not model.training
    for name, parameter in model.named_parameters():
        assert parameter.dtype == expected
        assert torch.equal(parameter, checkpoint.tensor(name).to(expected))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "opt"])
def test_a_checkpoint_of_the_base_model_alone_loads_the_same(
    family: str, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    # As with gpt2 and bloom on the hub: no prefix, and the head is the embeddings.
    whole = AutoModelForCausalLM.from_pretrained(tiny_model(family))
    whole.config.tie_word_embeddings = True
    whole.tie_weights()
    whole.base_model.save_pretrained(tmp_path / "base")
    shutil.copy(tiny_model(family) / "config.json", tmp_path / "base")
    change_config(tmp_path / "base", tie_word_embeddings=True)
    checkpoint = Checkpoint(tmp_path / "base")
    prefix = whole.base_model_prefix
    assert not any(name.startswith(f"{prefix}.") for name in checkpoint.locations)
    model = load_model(checkpoint)
    for name, parameter in model.base_model.named_parameters():
        assert torch.equal(parameter, checkpoint.tensor(name))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_missing_and_misfitting_weights_are_named_not_made_up(
    tiny_model: Callable[..., Path],
) -> None:
    folder = tiny_model("llama")
    name = "model.layers.1.mlp.up_proj.weight"
    change_weights(folder, lambda tensors: tensors.update({name: torch.zeros(95, 64)}))
    says = r"model\.layers\.1\.mlp\.up_proj\.weight is \(95, 64\), .* asks for \(96, 64\)"
    with pytest.raises(ModelError, match=says):
        load_model(Checkpoint(folder))
    change_weights(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(ModelError, match=r"1 weights .* are missing, the first is model\.layers\."):
        load_model(Checkpoint(folder))


@pytest.mark.parametrize(
    ("save", "kind"),
    [
        (encoder, "BertForMaskedLM"),
        (encoder_and_decoder, "T5ForConditionalGeneration"),
        (classifier, "LlamaForSequenceClassification"),
    ],
)
def test_another_kind_of_model_is_named(
    save: Callable[[Path], None], kind: str, tmp_path: Path
) -> None:
    save(tmp_path / "model")
    checkpoint = Checkpoint(tmp_path / "model")
    for load in (load_model, empty_model):
        with pytest.raises(ModelError, match=f"model is a {kind}; spp prunes decoder-only"):
            load(checkpoint)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "lamma"}, "lamma"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, r"is quantized \(awq\)"),
        ({"auto_map": {"AutoConfig": "own.Own"}, "model_type": "own"}, "set model.trust_remote"),
        ({"num_attention_heads": "four"}, "num_attention_heads"),
        ({"architectures": 5}, "architectures is 5; must be a list of names"),
        ({"architectures": [5]}, r"architectures is \[5\]; must be a list of names"),
    ],
)
def test_a_config_that_cannot_be_used_says_why_on_one_line(
    changes: dict[str, object], says: str, tiny_model: Callable[..., Path]
) -> None:
    folder = tiny_model("llama")
    change_config(folder, **changes)
    with pytest.raises(ModelError, match=says) as error:
        load_config(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": 0},
        {"num_key_value_heads": 0},
        {"head_dim": 0},
        {"head_dim": "x"},
        {"rope_parameters": {"rope_theta": "x", "rope_type": "default"}},
        {"pad_token_id": 1_000_000},
        {"text_config": {"model_type": "llama"}},
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 3000},
    ],
)
@pytest.mark.parametrize("load", [load_model, empty_model])
def test_a_config_of_which_no_model_can_be_built_says_so_at_once(
    changes: dict[str, object], load: Callable[..., object], tiny_model: Callable[..., Path]
) -> None:
    folder = tiny_model("llama")
    change_config(folder, **changes)
    with pytest.raises(ModelError, match=r"^/.*(cannot be|config\.json: )") as error:
        load(Checkpoint(folder))
    assert "\n" not in str(error.value)


def test_an_empty_model_has_shapes_and_no_weights(tiny_model: Callable[..., Path]) -> None:
    checkpoint = Checkpoint(tiny_model("opt"))
    model = empty_model(checkpoint)
    for name, parameter in model.named_parameters():
        assert parameter.is_meta
        assert tuple(parameter.shape) == checkpoint.shape(name)


def test_a_tokenizer_is_asked_for_by_name(
    tiny_model: Callable[..., Path], demo_folder: Path
) -> None:
    folder = tiny_model("llama")
    with pytest.raises(ModelError, match=r"has no tokenizer\. Copy its files \(tokenizer\.json"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="has no usable tokenizer") as error:
        load_tokenizer(folder)
    assert "\n" not in str(error.value)
    add_tokenizer(folder)
    tokenizer = load_tokenizer(folder)
    assert len(tokenizer) == 4096
    (folder / "tokenizer_config.json").write_text('{"model_max_length": "x"}')
    with pytest.raises(ModelError, match="model_max_length is 'x'; must be a number"):
        load_tokenizer(folder)
    assert tokenizer.decode(tokenizer("def f(): pass")["input_ids"]).endswith("def f(): pass")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens where no GPU is")
def test_without_a_gpu_auto_is_the_cpu_and_asking_for_one_is_a_mistake() -> None:
    assert resolve_device("auto") == resolve_device("cpu") == CPU
    for device in ("cuda", "cuda:1"):
        with pytest.raises(ConfigError, match=f"model.device is '{device}', and torch sees 0 GPUs"):
            resolve_device(device)


def test_more_processes_than_gpus_is_a_mistake_that_each_of_them_finds(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    places = {"WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "3", "MASTER_ADDR": "", "MASTER_PORT": ""}
    for key, value in places.items():
        monkeypatch.setenv(key, value)
    for local in ("0", "2"):
        monkeypatch.setenv("RANK", local)
        monkeypatch.setenv("LOCAL_RANK", local)
        with pytest.raises(ConfigError, match="3 processes on this machine, and torch sees 2 GPUs"):
            resolve_device("auto")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert resolve_device("auto") == torch.device("cuda:1")


def test_a_cpu_computes_in_float32_and_a_gpu_as_stored() -> None:
    assert compute_dtype(CPU) == torch.float32
    assert compute_dtype(GPU) is None


def test_transformers_is_quiet_inside_and_as_it_was_afterwards() -> None:
    def state() -> tuple[int, bool]:
        logging = transformers.logging
        return logging.get_verbosity(), logging.is_progress_bar_enabled()

    def fail_quietly() -> None:
        with quiet():
            assert state() == (50, False)  # critical, and no bars
            raise ZeroDivisionError

    before = state()
    with pytest.raises(ZeroDivisionError):
        fail_quietly()
    assert state() == before
