"""Packed rows are to a model what they are one by one, or packing is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from conftest import make_model
from transformers import AutoModelForCausalLM

from spp_cli.data.packing import PackedRows
from spp_cli.data.token_rows import Account, Rows, RowWriter
from spp_cli.errors import ConfigError
from spp_cli.training.packing import check_packing
from spp_cli.training.trainer import pad_rows

LENGTH = 32
HOLDS_APART = ["llama", "qwen3", "gpt_neox", "mistral", "gemma3", "gpt2", "phi3", "qwen3_moe"]


def loaded(family: str, tmp_path: Any, attention: str | None = None) -> Any:
    folder = make_model(family, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention)
    model.config.use_cache = False
    return model.eval()  # without dropout, which would be another each time


@pytest.fixture(scope="module")
def rows() -> Rows:
    """Rows of 2 to 20 tokens, half of them with a prompt that carries no loss."""
    generator = torch.Generator().manual_seed(0)
    writer = RowWriter()
    for number in range(9):
        size = 2 + 2 * number
        ids = torch.randint(3, 128, (size,), generator=generator).tolist()
        prompt = size // 2 if number % 2 else 0
        writer.add(ids, [-100] * prompt + ids[prompt:])
    return writer.rows(Account("r", "alpaca", 9))


def losses_and_gradients(model: Any, batches: Sequence[Any]) -> tuple[float, list[torch.Tensor]]:
    """Return the sum of all tokens' losses and its gradients, as the Trainer has the model do."""
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = model(**batch, num_items_in_batch=torch.tensor(1)).loss
        loss.backward()
        total += loss.item()
    return total, [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", HOLDS_APART)
def test_packed_rows_have_the_losses_and_gradients_of_rows_one_by_one(
    family: str, attention: str, rows: Rows, tmp_path: Any
) -> None:
    model = loaded(family, tmp_path, attention)
    check_packing(model)
    packed = PackedRows(rows, LENGTH)
    assert 1 < len(packed) < len(rows)
    one_by_one = [pad_rows([rows[index]]) for index in range(len(rows))]
    together = [pad_rows([packed[index] for index in range(len(packed))])]
    assert "attention_mask" not in together[0]
    loss, gradients = losses_and_gradients(model, one_by_one)
    packed_loss, packed_gradients = losses_and_gradients(model, together)
    assert packed_loss == pytest.approx(loss, rel=1e-5)
    for one, other in zip(gradients, packed_gradients, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=2e-5 * float(one.abs().max()) + 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["bloom", "opt"])
def test_a_family_that_would_read_packed_rows_as_one_is_refused(
    family: str, dtype: torch.dtype, tmp_path: Any
) -> None:
    message = rf"^finetune.data.packing: {family} does not hold packed rows apart: .* to false$"
    with pytest.raises(ConfigError, match=message):
        check_packing(loaded(family, tmp_path).to(dtype))


@pytest.mark.parametrize("family", HOLDS_APART)
def test_rounding_is_not_taken_for_a_leak(family: str, tmp_path: Any) -> None:
    check_packing(loaded(family, tmp_path).to(torch.bfloat16))


def test_positions_that_go_on_are_found_where_rows_are_held_apart(tmp_path: Any) -> None:
    class GoesOn(torch.nn.Embedding):
        """Positions of one's own choice, whatever the model is told."""

        def forward(self, positions: torch.Tensor) -> torch.Tensor:
            return super().forward(torch.arange(positions.shape[-1])[None].expand_as(positions))

    model = loaded("gpt2", tmp_path)
    model.transformer.wpe.__class__ = GoesOn
    with pytest.raises(ConfigError, match="a row's positions go on from the one before it"):
        check_packing(model)


def test_the_check_leaves_a_model_as_it_was(tmp_path: Any) -> None:
    model = loaded("llama", tmp_path).train()
    check_packing(model)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
