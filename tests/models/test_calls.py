"""A block run alone, with what was captured of its call, computes what it does in the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAMILIES, make_model
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, XLMConfig

from spp_cli.errors import ModelError
from spp_cli.models.activations import ActivationStore
from spp_cli.models.calls import BlockCalls, capture_calls
from spp_cli.models.decoder import Decoder

Load = Callable[..., PreTrainedModel]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Return a maker of tiny models in evaluation mode."""

    def make(family: str, **changes: object) -> PreTrainedModel:
        folder = make_model(family, tmp_path / family, **changes)
        return AutoModelForCausalLM.from_pretrained(folder).eval()

    return make


def batches(samples: int = 6, size: int = 4, length: int = 24) -> tuple[Tensor, ...]:
    """Return random tokens; with the defaults the last batch is smaller."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, 128, (samples, length), generator=generator).split(size)


@torch.no_grad()
def captured(model: PreTrainedModel, text: tuple[Tensor, ...]) -> BlockCalls:
    store = ActivationStore("device", torch.device("cpu"))
    return capture_calls(Decoder(model), text, store)


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple | list) else output


def masks_of(calls: BlockCalls) -> list[Tensor]:
    """Return the attention masks of all calls, block by block, batch by batch."""
    return [
        value
        for block in calls.arguments
        for _, keywords in block
        for value in keywords.values()
        if isinstance(value, Tensor) and value.dim() == 4
    ]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_block_run_alone_gives_what_it_gives_in_the_model(family: str, load: Load) -> None:
    model = load(family)
    blocks = Decoder(model).blocks
    expected: list[Tensor] = []
    handles = [
        block.register_forward_hook(lambda _, __, output: expected.append(first(output)))
        for block in blocks
    ]
    for batch in batches():
        model(batch)
    for handle in handles:
        handle.remove()

    calls = captured(model, batches())
    found = []
    for batch in range(len(batches())):
        for index, block in enumerate(blocks):
            calls.hidden_states[batch] = calls.run(block, index, batch)
            found.append(calls.hidden_states[batch])
    assert len(found) == len(expected) == 4
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "openai-gpt"])  # a tensor, a tuple, a list
@torch.no_grad()
def test_capturing_leaves_the_model_as_it_was(family: str, load: Load) -> None:
    model = load(family)
    before = model(batches()[0]).logits
    captured(model, batches())
    assert not any("forward" in vars(block) for block in Decoder(model).blocks)
    assert torch.equal(model(batches()[0]).logits, before)


def test_a_model_that_fails_is_left_as_it_was_too(load: Load) -> None:
    model = load("llama")
    with pytest.raises(IndexError):
        captured(model, (torch.tensor([[5000]]),))  # no such token
    assert not any("forward" in vars(block) for block in Decoder(model).blocks)


@pytest.mark.parametrize("samples", [2, 8, 32])
def test_equal_masks_are_kept_once_however_many_batches_there_are(samples: int, load: Load) -> None:
    calls = captured(load("gemma2"), batches(samples, 2))
    masks = masks_of(calls)
    assert len(masks) == samples  # for samples / 2 batches and two blocks
    assert len({mask.data_ptr() for mask in masks}) == 2  # sliding and full attention


def test_a_sliding_window_masks_other_tokens_than_full_attention(load: Load) -> None:
    sliding, full = masks_of(captured(load("gemma2", sliding_window=4), batches(2, 2)))
    assert not torch.equal(sliding, full)


def test_what_a_batch_brings_of_its_own_is_not_shared(load: Load) -> None:
    calls = captured(load("bloom"), batches(6, 4))
    whole, rest = calls.arguments[0]
    sizes = [value.shape[0] for value in whole[1].values() if isinstance(value, Tensor)]
    others = [value.shape[0] for value in rest[1].values() if isinstance(value, Tensor)]
    assert sizes != others  # the last batch is smaller, and so is its mask or its bias


def test_a_model_that_changes_what_blocks_hand_on_is_refused(load: Load) -> None:
    model = load("glm_moe_dsa")

    def change(_: Any, args: Any, kwargs: Any) -> Any:
        return args, {**kwargs, "prev_topk_indices": kwargs["prev_topk_indices"].flip(-1)}

    Decoder(model).blocks[1].register_forward_pre_hook(change, with_kwargs=True)
    with pytest.raises(ModelError, match=r"are not one chain.*magnitude"):
        captured(model, batches())


def test_blocks_that_are_no_chain_are_refused_rather_than_run_in_a_wrong_order() -> None:
    config = XLMConfig(emb_dim=16, n_layers=2, n_heads=2, causal=True, vocab_size=128)
    model = AutoModelForCausalLM.from_config(config).eval()
    # Attentions and feed-forward layers stand in two lists, and are called in turns.
    says = r"the blocks of a xlm model \(transformer\.ffns\) are not one chain.*magnitude"
    with pytest.raises(ModelError, match=says):
        captured(model, batches())
