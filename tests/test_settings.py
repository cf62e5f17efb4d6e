"""YAML, flags and --set become one configuration; every mistake has its place and one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from spp_cli import yaml12
from spp_cli.config import SppConfig
from spp_cli.errors import ConfigError
from spp_cli.settings import (
    Layer,
    assigned,
    demo_defaults,
    dump_yaml,
    parse_assignment,
    read_yaml,
    stack,
    validate,
)


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Read a text as the file a.yaml of the current folder."""
    monkeypatch.chdir(tmp_path)

    def read_text(text: str) -> Layer:
        Path("a.yaml").write_text(text, encoding="utf-8")
        return read_yaml("a.yaml")

    return read_text


def from_set(*assignments: str) -> Layer:
    return assigned(map(parse_assignment, assignments))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2:4", "2:4"),
        ("1e-4", 1e-4),
        (".75", 0.75),
        ("5.", 5.0),
        ("-1.5E+3", -1500.0),
        ("010", 10),
        ("+7", 7),
        ("no", "no"),
        ("off", "off"),
        ("true", True),
        ("~", None),
        ("", None),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        ("2026-01-02", "2026-01-02"),
        ("75%", "75%"),
    ],
)
def test_scalars_mean_what_they_look_like(text: str, value: Any) -> None:
    found = yaml12.parse(f"key: {text}")["key"]
    assert (found, type(found)) == (value, type(value))


def test_a_key_given_twice_is_refused_with_both_lines(read: Any) -> None:
    with pytest.raises(ConfigError) as error:
        read("prune:\n  sparsity: 0.5\n  pattern: unstructured\n  sparsity: 0.6\n")
    assert str(error.value) == (
        "a.yaml:4: 'prune.sparsity' is given twice, first on line 2. Remove one"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prune: [1\n", "a.yaml:2: not valid YAML: "),
        ("\tseed: 1", "a.yaml:1: not valid YAML: found character '\\t'"),
        ("- seed", "a.yaml: must hold keys and values"),
        ("seed", "a.yaml: must hold keys and values"),
        ("1: 2", "a.yaml:1: a key must be a word"),
        ("? [a]\n: 3", "a.yaml:1: a key must be a word"),
        ("seed: &a [*a]", "a.yaml: nested too deeply"),
        ("prune: {exclude: *.down_proj}", "Put quotes around a text that begins with '*'"),
        ("seed: 1\n---\nseed: 2", "a.yaml:2: not valid YAML: but found another document"),
    ],
)
def test_a_file_that_is_no_mapping_of_words_is_refused(read: Any, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_binary_one_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file\. The ready ones are in"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.yaml: not UTF-8 text"):
        read_yaml(tmp_path / "binary.yaml")
    with pytest.raises(ConfigError, match="a folder, not a YAML file"):
        read_yaml(tmp_path)


def test_an_empty_file_means_the_defaults(read: Any) -> None:
    assert validate(read("# nothing\n")) == SppConfig()


MISTAKES = [
    ("prune: {sparsity: 7.5}", "prune.sparsity is 7.5; must be a number above 0 and below 1"),
    ("prune: {sparsity: 0}", "prune.sparsity is 0; must be a number above 0 and below 1"),
    ("prune: {sparsity: 1}", "prune.sparsity is 1; must be a number above 0 and below 1"),
    ("prune: {sparsity: .nan}", "prune.sparsity is nan; must be a number above 0 and below 1"),
    (
        "prune: {sparsity: 75%}",
        "prune.sparsity is '75%'; must be a number above 0 and below 1. Write 0.75",
    ),
    (
        "prune: {sparsity: 2:4}",
        "prune.sparsity is '2:4'; must be a number above 0 and below 1. "
        "2:4 is a pattern: set prune.pattern",
    ),
    (
        "prune: {pattern: 3:2}",
        "prune.pattern is '3:2'; must be unstructured, or N:M with 0 < N < M, for example 2:4",
    ),
    (
        "prune: {pattern: 2:8, sparsity: 0.5}",
        "prune.sparsity is 0.5; but pattern 2:8 keeps 2 of every 8, a sparsity of 0.75. "
        "Leave sparsity out, or choose pattern: unstructured",
    ),
    ("prune: {methd: wanda}", "unknown key 'prune.methd'. Did you mean 'method'?"),
    (
        "prune: {method: sparsgpt}",
        "prune.method is 'sparsgpt'; must be one of magnitude, wanda, sparsegpt, fista, mrp, alps, "
        "isc, ria, wanda++. Did you mean 'sparsegpt'?",
    ),
    (
        "prune: {method: [wanda]}",
        "prune.method is ['wanda']; must be the name of a pruning method, or a mapping with a name",
    ),
    (
        "prune: {method: {name: sparsegpt, damping: -1}}",
        "prune.method.damping is -1; must be a number above 0",
    ),
    (
        "prune: {method: {name: sparsegpt, dampign: 1}}",
        "unknown key 'prune.method.dampign'. Did you mean 'damping'?",
    ),
    (
        "finetune: {adapter: {r: 0}}",
        "finetune.adapter.r is 0; must be a whole number of at least 1",
    ),
    ("finetune: {epochs: true}", "finetune.epochs is true; must be a number above 0"),
    (
        "finetune: {batch_size: 2.0}",
        "finetune.batch_size is 2.0; must be a whole number of at least 1",
    ),
    (
        "finetune: {schedule: linaer}",
        "finetune.schedule is 'linaer'; must be linear, cosine or constant. Did you mean 'linear'?",
    ),
    (
        "prune: {calibration: {sequence_length: 4}}",
        "prune.calibration.sequence_length is 4; must be a whole number of at least 8 or auto",
    ),
    (
        "prune: {calibration: {source: [c4]}}",
        "prune.calibration.source is ['c4']; must be text or a mapping of texts to weights above 0",
    ),
    (
        "prune: {calibration: {source: {c4: 3, a.txt: 0}}}",
        "prune.calibration.source is {'c4': 3, 'a.txt': 0}; "
        "the weight of a.txt must be a number above 0",
    ),
    (
        "prune: {calibration: {source: {c4: true}}}",
        "prune.calibration.source is {'c4': True}; the weight of c4 must be a number above 0",
    ),
    ("prune: {calibration: {source: {}}}", "prune.calibration.source is {}; must not be empty"),
    ("prune: {calibration: {source: ''}}", "prune.calibration.source is ''; must not be empty"),
    (
        "prune: {calibration: {format: chats}}",
        "prune.calibration.format is 'chats'; must be auto, text, chat, alpaca, "
        "completion or preference. "
        "Did you mean 'chat'?",
    ),
    ("prune: {include: [1]}", "prune.include.0 is 1; must be text"),
    (
        "prune: {allocation: {'*.mlp.*': 80%}}",
        "prune.allocation.*.mlp.* is '80%'; must be a number of at least 0 and below 1",
    ),
    (
        "prune: {allocation: {name: owl, widht: 0.1}}",
        "unknown key 'prune.allocation.widht'. Did you mean 'width'?",
    ),
    (
        "prune: {allocation: {name: owl, multiple: 0}}",
        "prune.allocation.multiple is 0; must be a number above 0",
    ),
    ("prune: {include: []}", "prune.include is []; must not be empty"),
    (
        "eval: {stages: [prun]}",
        "eval.stages.0 is 'prun'; must be dense, prune, finetune or merge. Did you mean 'prune'?",
    ),
    ("eval: {limit: none}", "eval.limit is 'none'; must be a whole number of at least 1"),
    (
        "model: [a]",
        "model is ['a']; must be a section with the keys path, revision, dtype, device, "
        "trust_remote_code",
    ),
    ("model: {path: ''}", "model.path is ''; must not be empty"),
    ("model: {device: gpu}", "model.device is 'gpu'; must be auto, cpu, cuda or cuda:N"),
    ("model: {trust_remote_code: yes}", "model.trust_remote_code is 'yes'; must be true or false"),
    (
        "run: a/b",
        "run is 'a/b'; must be letters, digits, '.', '_' and '-', beginning with a letter or digit",
    ),
    (
        "run: 7",
        "run is 7; must be letters, digits, '.', '_' and '-', beginning with a letter or digit",
    ),
    ("seed: -1", "seed is -1; must be a whole number of at least 0 and below 4294967296"),
    (
        "merge: 5",
        "merge is 5; must be a section with the keys dtype, rounding, check_sequences, "
        "check_length, allow_loss, packed",
    ),
    (
        "colour: red",
        "unknown key 'colour'. Allowed here: model, workspace, run, trust_files, seed, prune, "
        "finetune, merge, "
        "eval",
    ),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_a_mistake_is_said_in_one_line_with_its_place(read: Any, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(read(f"# first line\n{text}\n"))
    assert str(error.value) == f"a.yaml:2: {message}"


def test_all_mistakes_of_a_file_are_said_at_once(read: Any) -> None:
    with pytest.raises(ConfigError) as error:
        validate(read("seed: x\nprune:\n  sparsity: 7.5\n  methd: wanda\nfinetune:\n  epochs: 0\n"))
    places = [line.split(" ")[0] for line in str(error.value).splitlines()]
    assert sorted(places) == ["a.yaml:1:", "a.yaml:3:", "a.yaml:4:", "a.yaml:6:"]


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("prune.methd=wanda", "unknown key 'prune.methd'. Did you mean 'method'?"),
        ("prune.sparsity.x=1", "prune.sparsity is {'x': 1}; must be a number above 0 and below 1"),
        (
            "prune.calibration.samples=[",
            "prune.calibration.samples is '[', which is not valid YAML",
        ),
        ("prune.calibration.samples", "must look like prune.calibration.samples=64"),
        ("=64", "must look like prune.calibration.samples=64"),
    ],
)
def test_a_mistake_in_set_names_what_was_typed(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(from_set(assignment))
    assert str(error.value) == f"--set {assignment}: {message}"


def test_set_reaches_every_key_and_reads_texts_as_they_stand() -> None:
    config = validate(
        from_set(
            "prune.pattern=2:4",
            "prune.calibration.samples=64",
            "prune.exclude=*.down_proj,*.up_proj",
            "eval.tasks=[perplexity, next-line]",
            "finetune.learning_rate=1e-2",
            "model.revision=123",
            "run=null",
            "finetune.adapter.r=8",
        )
    )
    assert (config.prune.pattern, config.prune.sparsity) == ("2:4", 0.5)
    assert config.prune.calibration.samples == 64
    assert config.prune.exclude == ("*.down_proj", "*.up_proj")
    assert config.eval.tasks == ("perplexity", "next-line")
    assert config.finetune.learning_rate == 0.01
    assert (config.model.revision, config.run) == ("123", None)
    assert config.finetune.adapter.r == 8


def test_the_stronger_layer_wins_key_by_key(read: Any) -> None:
    file = read("model: {path: gpt2, dtype: float16}\nprune:\n  sparsity: 0.6\nfinetune:\n")
    config = validate(stack(demo_defaults(), file, from_set("model=opt", "seed=5")))
    assert (config.model.path, config.model.dtype) == ("opt", "float16")
    assert (config.prune.sparsity, config.seed) == (0.6, 5)
    assert config.prune.calibration.sequence_length == 512  # a section in part set keeps the rest


def test_a_pattern_displaces_a_sparsity_below_it_but_not_one_beside_it(read: Any) -> None:
    file = read("prune: {sparsity: 0.6}")
    assert validate(stack(file, from_set("prune.pattern=2:8"))).prune.sparsity == 0.75
    with pytest.raises(ConfigError, match="keeps 2 of every 8"):
        validate(stack(file, from_set("prune.sparsity=0.6", "prune.pattern=2:8")))


def test_another_method_drops_the_keys_of_the_one_below_and_the_same_keeps_them(read: Any) -> None:
    file = read("prune: {method: {name: sparsegpt, damping: 0.1}}")
    same = validate(stack(file, from_set("prune.method=sparsegpt"))).prune.method
    other = validate(stack(file, from_set("prune.method=wanda"))).prune.method
    assert (same.name, same.damping) == ("sparsegpt", 0.1)
    assert other.name == "wanda"


@pytest.mark.parametrize(
    ("below", "above", "means"),
    [
        ("owl", "prune.allocation.multiple=5", {"name": "owl", "multiple": 5.0, "width": 0.08}),
        ("{name: owl, width: 0.1}", "prune.allocation=uniform", {"name": "uniform"}),
        ("owl", "prune.allocation={'q_proj': 0.3}", {"name": "globs", "q_proj": 0.3}),
        ("{'*.mlp.*': 0.8}", "prune.allocation.q_proj=0.3", {"name": "globs", "q_proj": 0.3}),
        ("{q_proj: 0.3}", "prune.allocation=owl", {"name": "owl", "multiple": 3, "width": 0.08}),
    ],
)
def test_globs_are_told_from_keys_of_an_allocation_and_replaced_as_a_whole(
    below: str, above: str, means: dict[str, Any], read: Any
) -> None:
    config = validate(stack(read(f"prune: {{allocation: {below}}}"), from_set(above)))
    assert config.prune.allocation.model_dump() == means


def test_globs_are_dumped_in_their_order(read: Any) -> None:
    config = validate(read("prune: {allocation: {'*.mlp.*': 0.8, 'layers.0.*': 0}}"))
    again = validate(read(dump_yaml(config)))
    assert again == config
    ratios = list(again.prune.allocation.model_dump().items())
    assert ratios == [("name", "globs"), ("*.mlp.*", 0.8), ("layers.0.*", 0.0)]


def test_sources_by_weight_are_one_value_that_a_stronger_layer_replaces(read: Any) -> None:
    file = read("prune: {calibration: {source: {c4: 3, a.txt: 1}}}")

    def source(*assignments: str) -> Any:
        return validate(stack(file, from_set(*assignments))).prune.calibration.source

    assert source() == {"c4": 3.0, "a.txt": 1.0}
    assert source("prune.calibration.source=b.txt") == "b.txt"
    assert source("prune.calibration.source={b.txt: 2, demo: 0.5}") == {"b.txt": 2.0, "demo": 0.5}
    assert source("prune.calibration.source=2024") == "2024"
    below = from_set("prune.calibration.source=b.txt")
    assert validate(stack(below, file)).prune.calibration.source == {"c4": 3.0, "a.txt": 1.0}


def test_a_value_where_a_section_belongs_is_refused_even_under_a_flag(read: Any) -> None:
    with pytest.raises(ConfigError, match=r"a\.yaml:1: prune is 5; must be a section"):
        validate(stack(read("prune: 5"), from_set("prune.sparsity=0.3")))


TEXTS = st.one_of(
    st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20
    ),
    st.sampled_from(
        ["2:4", "1e-4", "1e5", "no", "yes", "null", "~", "010", "0x1f", "1_0", ".5", "-", "=", "<<"]
    ),
)
CONFIGS = st.builds(
    lambda path, revision, source, rate, decay, globs, seed, pattern: {
        "model": {"path": path, "revision": revision},
        "seed": seed,
        "prune": {"pattern": pattern, "calibration": {"source": source}, "exclude": globs},
        "finetune": {"learning_rate": rate, "weight_decay": decay},
    },
    path=TEXTS,
    revision=st.none() | TEXTS,
    source=TEXTS.filter(bool) | st.dictionaries(TEXTS, st.floats(1e-9, 1e9), min_size=1),
    rate=st.floats(1e-12, 1e12),
    decay=st.floats(0, 1e300),
    globs=st.lists(TEXTS, max_size=3),
    seed=st.integers(0, 2**32 - 1),
    pattern=st.sampled_from(["unstructured", "2:4", "1:3", "4:16"]),
)


@given(CONFIGS)
def test_a_dumped_configuration_reads_back_equal(settings: dict[str, Any]) -> None:
    config = SppConfig.model_validate(settings)
    text = dump_yaml(config)
    assert validate(Layer(yaml12.parse(text))) == config


@given(CONFIGS)
def test_a_dump_means_the_same_to_a_reader_of_yaml_1_1(settings: dict[str, Any]) -> None:
    text = dump_yaml(SppConfig.model_validate(settings))
    assert yaml.safe_load(text) == yaml12.parse(text)
