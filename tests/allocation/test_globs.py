"""Ratios given by hand, and what is left for the rest."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from spp_cli.allocation.allocation import Uniform
from spp_cli.allocation.budget import weighted_mean
from spp_cli.allocation.globs import Globs
from spp_cli.errors import ConfigError
from spp_cli.models.decoder import Linear

NOTHING: Any = None  # the dense model: ratios by hand do not look at it


def linears(width: int = 64) -> list[Linear]:
    """Two blocks of a wide and a narrow layer each."""
    shapes = {"mlp.up_proj": 3 * width, "attn.q_proj": width}
    return [
        Linear(f"layers.{block}.{name}", nn.Linear(64, rows, device="meta"))
        for block in range(2)
        for name, rows in shapes.items()
    ]


def allocate(ratios: dict[str, float], sparsity: float) -> dict[str, float]:
    globs = Globs.model_validate(ratios)
    globs.check(linears(), sparsity)  # what cannot be is refused here, before any text is read
    return dict(globs.allocate(linears(), sparsity, NOTHING).ratios)


def mean(ratios: dict[str, float]) -> float:
    sizes = [linear.weight.numel() for linear in linears()]
    return weighted_mean([ratios[linear.name] for linear in linears()], sizes)


def test_the_rest_makes_the_overall_ratio_exact() -> None:
    found = allocate({"*.mlp.*": 0.6}, 0.5)
    assert found == pytest.approx(
        {
            "layers.0.mlp.up_proj": 0.6,
            "layers.0.attn.q_proj": 0.2,  # a quarter of the weights: 3 · 0.6 + 0.2 = 4 · 0.5
            "layers.1.mlp.up_proj": 0.6,
            "layers.1.attn.q_proj": 0.2,
        },
        abs=1e-12,
    )


def test_the_first_glob_that_matches_counts() -> None:
    one = allocate({"layers.0.*": 0.1, "*.mlp.*": 0.6}, 0.3)
    other = allocate({"*.mlp.*": 0.6, "layers.0.*": 0.1}, 0.5)
    assert (one["layers.0.mlp.up_proj"], one["layers.1.mlp.up_proj"]) == (0.1, 0.6)
    assert (other["layers.0.mlp.up_proj"], other["layers.0.attn.q_proj"]) == (0.6, 0.1)


@given(st.floats(0, 0.99), st.floats(0, 0.99), st.floats(0.01, 0.99))
def test_the_weighted_mean_is_the_sparsity_or_nothing_is_allocated(
    first: float, second: float, sparsity: float
) -> None:
    try:
        found = allocate({"layers.0.mlp.*": first, "q_proj": second}, sparsity)
    except ConfigError:
        fixed = (3 * first + 2 * second) / 8  # the rest is the second up_proj, 3 of 8 parts
        assume(abs(sparsity - fixed) > 1e-9 and abs(sparsity - fixed - 3 / 8) > 1e-9)
        assert not fixed <= sparsity < fixed + 3 / 8
        return
    assert mean(found) == pytest.approx(sparsity, abs=1e-9)
    assert all(0 <= ratio < 1 for ratio in found.values())


def test_every_layer_may_be_named_if_that_makes_the_sparsity() -> None:
    found = allocate({"up_proj": 0.6, "q_proj": 0.2}, 0.5)
    assert mean(found) == pytest.approx(0.5, abs=1e-9)
    with pytest.raises(ConfigError) as error:
        allocate({"up_proj": 0.6, "q_proj": 0.3}, 0.5)
    assert str(error.value) == (
        "prune.sparsity is 0.5; the globs of prune.allocation match every layer and make it 0.525. "
        "Set prune.sparsity to that, or leave some layers to no glob"
    )
    assert mean(allocate({"up_proj": 0.6, "q_proj": 0.3}, 0.525)) == pytest.approx(0.525)


@pytest.mark.parametrize("sparsity", [0.4, 0.7])
def test_a_rest_that_would_lose_less_than_nothing_or_all_is_refused(sparsity: float) -> None:
    with pytest.raises(ConfigError) as error:
        allocate({"up_proj": 0.6}, sparsity)
    assert str(error.value) == (
        f"prune.sparsity is {sparsity}; the globs of prune.allocation leave it between 0.45 and "
        "0.7, whatever the other layers lose. Change prune.sparsity, or the ratios"
    )


def test_a_glob_for_nothing_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        allocate({"*.down_proj": 0.6}, 0.5)
    assert str(error.value) == (
        "prune.allocation has '*.down_proj', which matches no linear layer. "
        "There are: up_proj, q_proj"
    )
    with pytest.raises(ConfigError, match="'up_proj', all of whose layers match a glob before it"):
        allocate({"*.mlp.*": 0.6, "up_proj": 0.5}, 0.5)
    with pytest.raises(ConfigError, match=r"names no layers\. Write globs and their ratios"):
        allocate({}, 0.5)


def test_uniform_is_the_sparsity_everywhere() -> None:
    found = Uniform().allocate(linears(), 0.3, NOTHING)
    assert found.ratios == dict.fromkeys((linear.name for linear in linears()), 0.3)
