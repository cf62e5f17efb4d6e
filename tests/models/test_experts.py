"""Experts taken apart compute what transformers computes, by linears that are really called."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import FAMILIES, make_model
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GptOssConfig, MixtralConfig, NemotronHConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts

from spp_cli.models.checkpoint import Checkpoint
from spp_cli.models.decoder import Decoder
from spp_cli.models.experts import fused_parts, has_experts, routers, take_apart
from spp_cli.models.loading import load_model

EXPERTS, HIDDEN, INNER = 5, 16, 12
SIZES = {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_local_experts": EXPERTS}
# [gate; up] of (out, in) · gate and up by turns of (in, out), with biases · no gate
LAYOUTS = {
    "mixtral": lambda: MixtralExperts(MixtralConfig(**SIZES)),
    "gpt_oss": lambda: GptOssExperts(GptOssConfig(**SIZES)),
    "nemotron_h": lambda: NemotronHExperts(
        NemotronHConfig(hidden_size=HIDDEN, n_routed_experts=EXPERTS, moe_intermediate_size=INNER)
    ),
}
MIXTURES = ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v3", "granitemoe", "gpt_oss"]


def make_experts(layout: str) -> nn.Module:
    experts = LAYOUTS[layout]()
    experts.config._experts_implementation = "eager"
    torch.manual_seed(0)
    for parameter in experts.parameters():
        nn.init.normal_(parameter, std=0.3)
    return experts


def routing(tokens: int, choices: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states, choices and their weights; the last expert is never chosen."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(tokens, EXPERTS - 1, generator=generator)
    hidden_states = torch.randn(tokens, HIDDEN, generator=generator)
    return hidden_states, *reversed(scores.topk(choices))


def apart(experts: nn.Module) -> nn.Module:
    taken = copy.deepcopy(experts)
    take_apart(taken)
    return taken


@pytest.mark.parametrize("layout", LAYOUTS)
@given(tokens=st.integers(0, 9), choices=st.integers(1, EXPERTS - 1), seed=st.integers(0, 1000))
def test_the_output_is_that_of_transformers_whatever_the_routing(layout, tokens, choices, seed):
    experts = make_experts(layout)
    inputs = routing(tokens, choices, seed)
    torch.testing.assert_close(apart(experts)(*inputs), experts(*inputs), rtol=1e-5, atol=1e-6)


def test_a_choice_that_stands_for_no_expert_adds_nothing():
    experts = make_experts("mixtral")
    hidden_states, chosen, weights = routing(6, 2, 0)
    chosen[::2, 0] = EXPERTS
    found = apart(experts)(hidden_states, chosen, weights)
    torch.testing.assert_close(found, experts(hidden_states, chosen, weights))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gradient_of_the_input_is_that_of_transformers(layout):
    experts = make_experts(layout)
    hidden_states, chosen, weights = routing(7, 2, 1)
    gradients = []
    for module in (experts, apart(experts)):
        leaf = hidden_states.clone().requires_grad_()
        module(leaf, chosen, weights).square().sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_number_is_in_one_linear_and_nowhere_else(layout):
    model = nn.ModuleDict({"experts": make_experts(layout)})
    fused = dict(model.named_parameters())
    take_apart(model)
    seen = {name: torch.zeros(tensor.shape) for name, tensor in fused.items()}
    parts = fused_parts(model)
    assert parts.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        part = parts[name].of(fused[parts[name].name])
        assert torch.equal(part, parameter)
        assert part.data_ptr() == parameter.data_ptr()  # the same memory, not a copy
        parts[name].of(seen[parts[name].name]).add_(1)
    for count in seen.values():
        assert (count == 1).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_what_is_written_into_a_linear_is_what_the_model_computes_with(layout):
    experts = make_experts(layout)
    taken = apart(experts)
    for name, part in fused_parts(nn.ModuleDict({"experts": taken})).items():
        half = taken.get_parameter(name.removeprefix("experts."))
        half.mul_(torch.rand(half.shape) < 0.5)
        part.of(experts.get_parameter(part.name.removeprefix("experts."))).copy_(half)
    inputs = routing(8, 2, 2)
    torch.testing.assert_close(taken(*inputs), experts(*inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_linear_is_called_once_with_just_the_tokens_routed_to_its_expert(layout):
    taken = apart(make_experts(layout))
    received: dict[str, list[Tensor]] = {}
    for name, module in taken.named_modules():
        if isinstance(module, nn.Linear):
            calls = received.setdefault(name, [])
            module.register_forward_pre_hook(lambda _, args, calls=calls: calls.append(args[0]))
    hidden_states, chosen, weights = routing(9, 2, 3)
    taken(hidden_states, chosen, weights)
    for expert in range(EXPERTS):
        routed = hidden_states[(chosen == expert).any(dim=1)]
        (inputs,) = received[f"{expert}.up_proj"] or [routed[:0]]
        assert sorted(inputs.tolist()) == sorted(routed.tolist())
        assert len(received[f"{expert}.down_proj"]) == bool(len(routed))
        if received.get(f"{expert}.gate_proj"):  # one tensor: its statistics are computed once
            assert received[f"{expert}.gate_proj"][0] is inputs
    assert not received[f"{EXPERTS - 1}.up_proj"]


@pytest.mark.parametrize("family", MIXTURES)
@torch.no_grad()
def test_a_whole_model_has_the_same_logits_before_and_after(family, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(make_model(family, tmp_path / "model")).eval()
    tokens = torch.randint(3, 128, (2, 20))
    before = model(tokens).logits
    take_apart(model)
    torch.testing.assert_close(model(tokens).logits, before, rtol=1e-4, atol=1e-5)
    take_apart(model)  # a second time there is nothing left to take apart
    torch.testing.assert_close(model(tokens).logits, before, rtol=1e-4, atol=1e-5)


def test_a_mixture_is_known_by_its_experts_and_a_dense_model_by_their_absence(tmp_path):
    found = {
        family: has_experts(load_model(Checkpoint(make_model(family, tmp_path / family))))
        for family in ("qwen3_moe", "gpt_oss", "llama", "gpt2")
    }
    assert found == {"qwen3_moe": True, "gpt_oss": True, "llama": False, "gpt2": False}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_chooses_experts_is_no_linear_to_prune(family, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(make_model(family, tmp_path / "model"))
    take_apart(model)
    decoder = Decoder(model)
    names = {id(module): name for name, module in model.named_modules()}
    found = [names[id(router)] for block in decoder.blocks for router in routers(block)]
    # The others keep the weights of their router in no linear layer.
    wanted = [f"model.layers.{index}.mlp.shared_expert_gate" for index in range(2)]
    assert found == (wanted if family == "qwen2_moe" else [])
    assert not set(found) & {linear.name for linear in decoder.all_linears()}


def test_routers_in_lists_of_experts_are_found_too():
    # As in families whose code comes with the model: a list of experts, a linear beside it.
    block = nn.Module()
    block.gate = nn.Linear(HIDDEN, EXPERTS)
    block.experts = nn.ModuleList(nn.Linear(HIDDEN, EXPERTS) for _ in range(EXPERTS))
    block.shared = nn.Linear(HIDDEN, INNER)
    block.router = nn.Sequential(nn.Linear(HIDDEN, INNER))
    assert set(routers(block)) == {block.gate, block.router[0]}
