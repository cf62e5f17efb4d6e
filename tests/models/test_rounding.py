"""Rounding to a narrower type: one of the two neighbours, and on average what it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spp_cli.models.rounding import stochastic, stored_type

TYPES = [torch.bfloat16, torch.float16]
SCALES = [1e-38, 1e-8, 1e-4, 1.0, 300.0]


def grid(dtype: torch.dtype) -> np.ndarray:
    """All finite values of a type of two bytes, in order."""
    values = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).float()
    return np.unique(values[values.isfinite()].numpy())


def values(scale: float, count: int = 4000) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(count) * scale


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("scale", SCALES)
def test_every_value_becomes_one_of_its_two_neighbours(dtype, scale):
    exact = values(scale)
    found = stochastic(exact, dtype, seed=0, name="a")
    assert found.dtype == dtype
    known = grid(dtype)
    above = np.searchsorted(known, exact.numpy())
    below = np.where(known[above] == exact.numpy(), above, above - 1)
    neighbours = np.stack([known[below], known[above]])
    assert (neighbours == found.float().numpy()).any(axis=0).all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("value", [1.001, -1.001, 0.7531, -3e-5, 129.03])
def test_on_average_a_value_stays_what_it_was(dtype, value):
    exact = torch.full((200_000,), value)
    found = stochastic(exact, dtype, seed=0, name="a").float()
    near = exact[:1].to(dtype).float().item()
    assert found.unique().numel() == 2
    error = found.std().item() / len(found) ** 0.5
    assert found.mean().item() == pytest.approx(value, abs=4 * error)
    assert abs(near - value) > 8 * error  # what the nearest would be off by can be told


@pytest.mark.parametrize("dtype", [*TYPES, torch.float32])
def test_what_the_type_has_is_never_changed(dtype):
    exact = torch.cat([torch.zeros(50), -torch.zeros(50), values(1.0).to(dtype).float()])
    found = stochastic(exact, dtype, seed=0, name="a")
    assert torch.equal(found.float(), exact)
    assert torch.equal(found.float().signbit(), exact.signbit())


@pytest.mark.parametrize("dtype", TYPES)
def test_nothing_becomes_zero_but_what_is_nearest_to_it(dtype):
    smallest = torch.finfo(dtype).smallest_normal
    exact = values(smallest)
    found = stochastic(exact, dtype, seed=0, name="a")
    assert not ((found == 0) & (exact.to(dtype) != 0)).any()


def test_the_draw_depends_on_seed_and_name_alone():
    exact = values(1.0)
    first = stochastic(exact, torch.bfloat16, seed=0, name="a")
    assert torch.equal(first, stochastic(exact, torch.bfloat16, seed=0, name="a"))
    assert not torch.equal(first, stochastic(exact, torch.bfloat16, seed=1, name="a"))
    assert not torch.equal(first, stochastic(exact, torch.bfloat16, seed=0, name="b"))


def test_the_type_asked_for_is_that_of_weights_alone():
    assert stored_type("a.weight", torch.bfloat16, None) == torch.bfloat16
    assert stored_type("a.weight", torch.bfloat16, torch.float16) == torch.float16
    assert stored_type("a.steps", torch.int64, torch.float16) == torch.int64
    assert stored_type("a.bias", torch.float32, torch.float16, ["a.b"]) == torch.float32
