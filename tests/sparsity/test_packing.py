"""A packed weight is smaller and comes back bit for bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spp_cli.sparsity.packing import pack_weight, unpack_weight


@given(
    st.integers(1, 30),
    st.integers(1, 30),
    st.floats(0, 1),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.integers(0, 99),
)
def test_what_is_packed_comes_back_bit_for_bit(rows, columns, density, dtype, seed):
    torch.manual_seed(seed)
    keep = torch.rand(rows, columns) < density
    weight = torch.randn(rows, columns).to(dtype).masked_fill(~keep, 0)
    weight[keep & (torch.rand(rows, columns) < 0.1)] = -0.0  # a kept zero, and its sign
    found = unpack_weight(pack_weight(weight, keep), weight.shape)
    assert torch.equal(found, weight)
    assert torch.equal(found.signbit(), weight.signbit())


@pytest.mark.parametrize(("sparsity", "share"), [(0.5, 0.5625), (0.75, 0.3125)])
def test_it_takes_its_values_and_one_bit_a_weight(sparsity, share):
    weight = torch.randn(64, 128).bfloat16()
    keep = torch.arange(weight.numel()).view(64, 128) % 4 >= sparsity * 4
    packed = pack_weight(weight, keep)
    size = sum(part.numel() * part.element_size() for part in packed)
    assert size == share * weight.numel() * 2
