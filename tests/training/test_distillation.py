"""Distillation adds how far a student's predictions are from the dense model's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from conftest import make_model
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM

from spp_cli.training.distillation import Distillation, share_equal_tensors


class Fixed(nn.Module):
    """A teacher that always says the same."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, **_: object) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits)


@given(st.floats(0, 1), st.floats(0.5, 4), st.integers(0, 99))
def test_loss_and_gradient_are_those_of_the_formula(weight, temperature, seed):
    torch.manual_seed(seed)
    logits = torch.randn(2, 5, 7, requires_grad=True)
    teacher, own = torch.randn(2, 5, 7), torch.tensor(1.5)
    labels = torch.randint(7, (2, 5))
    labels[0, :3] = -100  # not trained on
    found = Distillation(Fixed(teacher), weight, temperature).blended(
        own, logits, {"labels": labels}, (labels[:, 1:] != -100).sum()
    )
    counted = labels[:, 1:] != -100
    p = (teacher[:, :-1][counted] / temperature).softmax(-1)
    q = (logits[:, :-1][counted] / temperature).softmax(-1)
    distance = (p * (p / q).log()).sum(-1).mean() * temperature**2
    expected = (1 - weight) * own + weight * distance
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    ours, theirs = (torch.autograd.grad(loss, logits)[0] for loss in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_batches_of_one_step_add_up_to_the_whole():
    logits, teacher = torch.randn(4, 6, 9), torch.randn(4, 6, 9)
    labels = torch.randint(9, (4, 6))
    labels[:3, :4] = -100
    own, count = torch.tensor(0.0), (labels[:, 1:] != -100).sum()
    whole = Distillation(Fixed(teacher), 1.0, 1.0).blended(own, logits, {"labels": labels}, count)
    parts = [
        Distillation(Fixed(teacher[part]), 1.0, 1.0).blended(
            own, logits[part], {"labels": labels[part]}, count
        )
        for part in (slice(0, 2), slice(2, 4))
    ]
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_is_no_distance_from_itself_and_shares_what_neither_trains(family, tmp_path):
    folder = make_model(family, tmp_path / "model")
    teacher, student = (AutoModelForCausalLM.from_pretrained(folder) for _ in range(2))
    student.requires_grad_(False)
    name, changed = next(
        (name, p) for name, p in student.named_parameters() if "layers.0" in name or "h.0" in name
    )
    changed.data += 1
    share_equal_tensors(teacher, student)
    pairs = zip(teacher.named_parameters(), student.parameters(), strict=True)
    for (key, ours), theirs in pairs:
        assert (ours.data_ptr() == theirs.data_ptr()) == (key != name)
    tokens = torch.randint(3, 100, (2, 8))
    inputs = {"input_ids": tokens, "labels": tokens}
    logits = teacher(tokens).logits
    found = Distillation(teacher, 1.0, 2.0).blended(torch.tensor(9.0), logits, inputs, 14)
    assert found.abs() < 1e-5


class Placed:
    """A tensor on a device that this machine may not have."""

    dtype, requires_grad = torch.float32, False

    def __init__(self, value: int, device: str) -> None:
        self.value, self.device, self.data = value, device, self

    def to(self, device: str) -> Placed:
        return Placed(self.value, device)


def test_a_teacher_in_main_memory_is_compared_on_the_students_gpu_tensor_by_tensor(monkeypatch):
    def equal(one: Placed, other: Placed) -> bool:
        assert one.device == other.device  # what torch raises of two devices
        return one.value == other.value

    monkeypatch.setattr(torch, "equal", equal)
    teacher, student = (
        {"embedding": Placed(1, device), "pruned": Placed(pruned, device)}
        for device, pruned in (("cpu", 2), ("cuda", 3))
    )
    share_equal_tensors(
        SimpleNamespace(named_parameters=teacher.items),
        SimpleNamespace(named_parameters=student.items),
    )
    assert teacher["embedding"].data is student["embedding"]
    assert teacher["pruned"].data.device == "cpu"  # until all of the teacher is moved
