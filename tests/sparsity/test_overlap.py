"""What two masks have in common, counted on packed bits."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spp_cli.sparsity.masks import KeepMasks, pack, save_masks
from spp_cli.sparsity.overlap import Overlap, block_of, overlap, overlaps

NAMES = ("model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj")


@st.composite
def keeps(draw: st.DrawFn) -> list[list[torch.Tensor]]:
    """Two masks of each of two linears, of any shape and any densities."""
    found = []
    for _ in NAMES:
        rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 11))
        generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
        densities = draw(st.tuples(*[st.sampled_from([0, 0.25, 0.5, 1])] * 2))
        drawn = [torch.rand(rows, columns, generator=generator) < share for share in densities]
        found.append(drawn)
    return found


def saved(folder: Path, masks: dict[str, torch.Tensor]) -> KeepMasks:
    folder.mkdir()
    packed = {name: pack(mask) for name, mask in masks.items()}
    save_masks(folder, packed, {name: tuple(mask.shape) for name, mask in masks.items()})
    return KeepMasks(folder)


@given(keeps())
def test_it_is_symmetric_exact_and_whole_with_itself(drawn: list[list[torch.Tensor]]) -> None:
    with TemporaryDirectory() as folder:
        a, b = (
            saved(Path(folder) / str(side), dict(zip(NAMES, (m[side] for m in drawn), strict=True)))
            for side in (0, 1)
        )
        there, back, alone = overlaps(a, b), overlaps(b, a), overlaps(a, a)
    for (one, other), found, turned, same in zip(drawn, there, back, alone, strict=True):
        assert found.kept_both == int((one & other).sum())
        assert found.size == one.numel()
        for share in ("common", "jaccard", "by_chance"):
            assert getattr(found, share) == getattr(turned, share)
            assert 0 <= getattr(found, share) <= 1
        assert found.jaccard <= found.common
        union = int((one | other).sum())
        assert found.jaccard == (found.kept_both / union if union else 1)
        assert same.common == same.jaccard == 1
    whole = overlap("all", there)
    assert whole.kept_both == sum(found.kept_both for found in there)
    low, high = sorted(found.jaccard for found in there)
    assert whole.size == sum(found.size for found in there)
    assert low <= whole.jaccard + 1e-12
    assert whole.jaccard <= high + 1e-12


def test_the_sparser_mask_may_lie_inside_the_other() -> None:
    nested = Overlap("x", size=100, kept_a=25, kept_b=50, kept_both=25)
    assert (nested.common, nested.jaccard, nested.by_chance) == (1, 0.5, 0.5)


def test_layers_of_other_names_or_shapes_are_left_out(tmp_path: Path) -> None:
    a = saved(tmp_path / "a", {name: torch.ones(2, 4).bool() for name in NAMES})
    b = saved(tmp_path / "b", {NAMES[0]: torch.ones(4, 2).bool(), "x": torch.ones(2, 4).bool()})
    assert overlaps(a, b) == []


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("model.layers.11.mlp.experts.3.up_proj", "model.layers.11"),
        ("transformer.h.0.attn.c_attn", "transformer.h.0"),
        ("lm_head", "lm_head"),
    ],
)
def test_a_block_is_a_name_as_far_as_its_first_number(name: str, block: str) -> None:
    assert block_of(name) == block
