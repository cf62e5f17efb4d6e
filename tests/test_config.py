"""The configuration models: defaults, types, and what two keys may not say at once."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from spp_cli import fields
from spp_cli.config import (
    CalibrationConfig,
    FinetuneConfig,
    ModelConfig,
    PruneConfig,
    SppConfig,
    parse_n_of_m,
)
from spp_cli.reporting.story import model_name

PATTERNS = st.tuples(st.integers(1, 64), st.integers(2, 64)).filter(lambda p: p[0] < p[1])


def test_the_defaults_alone_are_a_valid_configuration() -> None:
    config = SppConfig()
    assert config.model.path == "demo"
    assert config.prune.method.name == "wanda"
    assert config.finetune.adapter.name == "spp"


def test_every_key_says_what_it_is_for() -> None:
    assert [key for key, field in fields.walk() if not field.description] == []


def test_no_key_can_be_changed_afterwards() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        SppConfig().prune.sparsity = 0.3  # type: ignore[misc]


@given(PATTERNS)
def test_n_of_m_means_n_kept_so_the_sparsity_follows(pattern: tuple[int, int]) -> None:
    kept, of = pattern
    config = PruneConfig.model_validate({"pattern": f"{kept}:{of}"})
    assert config.sparsity == pytest.approx((of - kept) / of)


@given(PATTERNS)
def test_a_sparsity_that_contradicts_the_pattern_is_refused(pattern: tuple[int, int]) -> None:
    kept, of = pattern
    implied = 1 - kept / of
    other = implied / 2
    PruneConfig.model_validate({"pattern": f"{kept}:{of}", "sparsity": implied})
    with pytest.raises(ValidationError, match=f"keeps {kept} of every {of}"):
        PruneConfig.model_validate({"pattern": f"{kept}:{of}", "sparsity": other})


@pytest.mark.parametrize(
    "text", ["3:2", "2:2", "0:4", "2:4:8", "2/4", ":4", "2:", "a:b", "", "²:4"]
)
def test_what_keeps_nothing_or_all_is_no_pattern(text: str) -> None:
    assert parse_n_of_m(text) is None
    with pytest.raises(ValidationError, match="unstructured, or N:M"):
        PruneConfig(pattern=text)


@pytest.mark.parametrize("sparsity", [0, 1, -0.5, 7.5, float("nan"), float("inf"), "0.5", True])
def test_a_sparsity_is_a_number_between_0_and_1(sparsity: Any) -> None:
    with pytest.raises(ValidationError):
        PruneConfig(sparsity=sparsity)


@pytest.mark.parametrize("allocation", ["owl", {"*.mlp.*": 0.4}])
def test_n_of_m_gives_every_layer_the_same_ratio(allocation: Any) -> None:
    PruneConfig(pattern="2:4", allocation="uniform")
    with pytest.raises(ValidationError, match="gives every layer the same ratio"):
        PruneConfig.model_validate({"pattern": "2:4", "allocation": allocation})


def test_true_is_no_number_and_one_is_not_true() -> None:
    with pytest.raises(ValidationError):
        CalibrationConfig(samples=True)
    with pytest.raises(ValidationError):
        ModelConfig.model_validate({"trust_remote_code": 1})


def test_a_whole_number_serves_where_any_number_does_but_not_the_reverse() -> None:
    assert FinetuneConfig(epochs=3).epochs == 3.0
    with pytest.raises(ValidationError):
        FinetuneConfig.model_validate({"batch_size": 4.0})


def test_a_text_in_place_of_a_section_stands_for_its_main_key() -> None:
    short = SppConfig.model_validate({"model": "gpt2", "prune": {"method": "magnitude"}})
    long = {"model": {"path": "gpt2"}, "prune": {"method": {"name": "magnitude"}}}
    assert short == SppConfig.model_validate(long)


def test_a_method_takes_keys_of_its_own_and_no_others() -> None:
    config = PruneConfig.model_validate({"method": {"name": "sparsegpt", "damping": 0.1}})
    assert config.method.damping == 0.1
    with pytest.raises(ValidationError, match="Extra inputs"):
        PruneConfig.model_validate({"method": {"name": "magnitude", "damping": 0.1}})


def test_keys_without_a_name_are_those_of_the_default_method() -> None:
    config = FinetuneConfig.model_validate({"adapter": {"r": 8}})
    assert (config.adapter.name, config.adapter.r) == ("spp", 8)


def test_a_list_may_be_written_as_one_text_with_commas() -> None:
    config = SppConfig.model_validate(
        {"prune": {"exclude": "*.up_proj, *.down_proj"}, "eval": {"stages": "dense,merge"}}
    )
    assert config.prune.exclude == ("*.up_proj", "*.down_proj")
    assert config.eval.stages == ("dense", "merge")


def test_a_section_left_empty_has_its_defaults() -> None:
    assert SppConfig.model_validate({"prune": None, "eval": None}) == SppConfig()


def test_a_model_in_the_hubs_cache_names_a_run_by_its_name_there_and_not_by_a_commit() -> None:
    folder = f"/cache/models--owner--A-model/snapshots/{'0' * 40}"
    for path in (folder, f"{folder}/", folder.lstrip("/")):
        assert SppConfig.model_validate({"model": {"path": path}}).run_name() == (
            "owner-a-model-wanda-0.5"
        )
        assert model_name(path) == "owner/A-model"


@given(st.text(min_size=1, max_size=60))
def test_the_default_run_name_is_a_name_that_a_run_may_have(path: str) -> None:
    name = SppConfig.model_validate({"model": {"path": path}}).run_name()
    assert SppConfig(run=name).run_name() == name
    assert re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "demo-wanda-0.5"),
        ({"prune": {"method": "wanda++"}}, "demo-wandapp-0.5"),
        (
            {"model": "meta-llama/Llama-2-7b-hf", "prune": {"pattern": "2:4"}},
            "llama-2-7b-hf-wanda-2of4",
        ),
        (
            {"model": "/models/OPT 125m/", "prune": {"method": "sparsegpt"}},
            "opt-125m-sparsegpt-0.5",
        ),
        ({"run": "mine"}, "mine"),
    ],
)
def test_the_run_is_named_after_model_method_and_pattern(
    settings: dict[str, Any], name: str
) -> None:
    assert SppConfig.model_validate(settings).run_name() == name
