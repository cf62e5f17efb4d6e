"""What the plots of a report are made of."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from spp_cli.reporting.plots import grid, pareto_front

POINTS = st.lists(st.tuples(st.sampled_from([0, 0.5, 0.6, 0.75]), st.integers(1, 9)), min_size=1)


@given(POINTS)
def test_no_point_beats_one_of_the_front_and_each_other_is_beaten_by_one(points):
    def beats(one, other):
        return one != other and one[0] >= other[0] and one[1] <= other[1]

    front = pareto_front(points)
    assert front == sorted(set(front))
    for point in points:
        assert (point in front) == (not any(beats(other, point) for other in points))


def test_layers_lie_by_kind_and_block_and_experts_share_a_cell():
    kinds, blocks, values = grid(
        {
            "model.layers.0.self_attn.q_proj": 0.5,
            "model.layers.0.mlp.up_proj": 0.25,
            "model.layers.1.self_attn.q_proj": 0.75,
            "model.layers.1.mlp.experts.0.up_proj": 0.2,
            "model.layers.1.mlp.experts.1.up_proj": 0.4,
        }
    )
    assert kinds == ["self_attn.q_proj", "mlp.up_proj", "mlp.experts.*.up_proj"]
    assert blocks == ["0", "1"]
    assert values[0] == [0.5, 0.75]
    assert values[1][0] == 0.25
    assert math.isnan(values[1][1])
    assert math.isnan(values[2][0])
    assert math.isclose(values[2][1], 0.3)
