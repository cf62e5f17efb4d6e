"""ISC against the published saliency, and against what the authors' code makes of its own."""

from __future__ import annotations

import torch
from golden_cases import case
from hypothesis import given
from hypothesis import strategies as st
from layer_cases import gram_of
from torch import Tensor

from spp_cli.pruning.isc import ISC
from spp_cli.pruning.sparsegpt import SparseGPT
from spp_cli.pruning.statistics import Gram
from spp_cli.sparsity.patterns import NofM, Unstructured


def saliency(weight: Tensor, gram: Gram, damping: float = 0.01) -> Tensor:
    """Return equation 4 of the paper by brute force: (out_features, in_features), float64."""
    H = gram.hessian().double()
    H.diagonal().add_(damping * H.diagonal().mean())
    return weight.double().square() * (H.diagonal() + 1 / torch.linalg.inv(H).diagonal())


def test_scores_and_mask_are_the_published_ones() -> None:
    golden = case("isc_16x32")
    weight, gram = torch.tensor(golden["W"]), gram_of(torch.tensor(golden["X"]))
    method = ISC()
    factor = method.prepare(gram)
    scores = (weight / method.scale(factor)).square()
    torch.testing.assert_close(
        scores, torch.tensor(golden["isc_score_paper_eq4"]), rtol=1e-4, atol=1e-7
    )
    pruned = method.prune(weight, factor, Unstructured(0.5))
    assert torch.equal(~pruned.keep, torch.tensor(golden["mask_pruned_paper_eq4_exact_half"]) == 1)


def test_rows_with_the_mask_of_the_authors_code_have_its_weights() -> None:
    """Its saliency is another, and it prunes one weight too many: three weights in all differ."""
    golden = case("isc_16x32")
    weight, gram = torch.tensor(golden["W"]), gram_of(torch.tensor(golden["X"]))
    expected = torch.tensor(golden["isc_unstructured_50_bs128_authors_code"])
    pruned = ISC().prune(weight, ISC().prepare(gram), Unstructured(0.5))
    differs = pruned.keep != (expected != 0)
    assert int(differs.sum()) == 3
    same = ~differs.any(dim=1)
    torch.testing.assert_close(pruned.weight[same], expected[same], rtol=1e-4, atol=1e-4)


@given(st.integers(1, 6), st.sampled_from([8, 16, 24]), st.integers(1, 9), st.integers(0, 99))
def test_the_mask_of_one_block_is_that_of_the_formula_by_brute_force(
    rows: int, columns: int, tenths: int, seed: int
) -> None:
    torch.manual_seed(seed)
    weight, gram = torch.randn(rows, columns), gram_of(torch.randn(2, 40, columns))
    pattern = Unstructured(tenths / 10)
    found = ISC().prune(weight, ISC().prepare(gram), pattern).keep
    scores = saliency(weight, gram)
    assert int((~found).sum()) == pattern.removed_of(rows * columns)
    if found.all():
        return
    assert scores[found].min() > scores[~found].max() * (1 - 1e-5)  # but for what float32 rounds


@given(st.integers(1, 6), st.integers(0, 99))
def test_the_first_group_of_n_of_m_is_chosen_by_the_formula_too(rows: int, seed: int) -> None:
    torch.manual_seed(seed)
    weight, gram = torch.randn(rows, 16), gram_of(torch.randn(2, 40, 16))
    found = ISC().prune(weight, ISC().prepare(gram), NofM(2, 4)).keep
    assert torch.equal(found[:, :4], NofM(2, 4).keep(saliency(weight, gram)[:, :4]))


@given(st.integers(-8, 8), st.integers(0, 99))
def test_the_scale_of_weights_and_inputs_changes_no_mask(power: int, seed: int) -> None:
    torch.manual_seed(seed)
    weight, inputs = torch.randn(4, 16), torch.randn(2, 40, 16)
    factor = 2.0**power
    one, other = (
        ISC().prune(w, ISC().prepare(gram_of(x)), Unstructured(0.5)).keep
        for w, x in ((weight, inputs), (weight * factor, inputs / factor))
    )
    assert torch.equal(one, other)


def test_it_compensates_as_sparsegpt_does() -> None:
    """With inputs that are uncorrelated and alike both scores are W², up to a factor."""
    torch.manual_seed(0)
    weight, gram = torch.randn(4, 8), gram_of(torch.eye(8)[None])
    for pattern in (Unstructured(0.5), NofM(2, 4)):
        pruned, other = (m.prune(weight, m.prepare(gram), pattern) for m in (ISC(), SparseGPT()))
        assert torch.equal(pruned.keep, other.keep)
        torch.testing.assert_close(pruned.weight, other.weight)


def test_it_is_another_choice_than_that_of_sparsegpt_where_inputs_are_correlated() -> None:
    """The second input repeats the first and can make up for it, which ISC counts only half."""
    torch.manual_seed(0)
    inputs = torch.randn(1, 200, 3)
    inputs[..., 1] = inputs[..., 0] + 0.01 * inputs[..., 1]
    gram, weight = gram_of(inputs), torch.tensor([[0.9, 1.0, 0.6]])
    kept = {
        type(m): m.prune(weight, m.prepare(gram), Unstructured(0.34)).keep[0].tolist()
        for m in (ISC(), SparseGPT())
    }
    assert kept == {ISC: [True, True, False], SparseGPT: [False, True, True]}
