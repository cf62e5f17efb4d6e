"""What accelerate's configuration may ask of a finetuning by several processes."""

from __future__ import annotations

import pytest

from spp_cli.errors import ConfigError
from spp_cli.training.sharding import check_launch


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("FSDP_VERSION", None, "accelerate's fsdp_version is 1, and finetune needs 2"),
        ("FSDP_CPU_RAM_EFFICIENT_LOADING", "true", "efficient_loading is true, .* needs false"),
        ("FSDP_OFFLOAD_PARAMS", "true", "fsdp_offload_params is true, and finetune needs false"),
    ],
)
def test_what_an_adapter_cannot_be_trained_with_is_refused_by_its_key(
    variable, value, message, monkeypatch
):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    check_launch(is_mixture=False)
    if value is None:
        monkeypatch.delenv(variable)
    else:
        monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=message):
        check_launch(is_mixture=False)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    check_launch(is_mixture=False)


def test_a_mixture_of_experts_is_not_sharded(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match=r"mixture of experts, .*configs/accelerate/ddp\.yaml"):
        check_launch(is_mixture=True)
