"""A fingerprint changes with whatever decides a result, and with nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from spp_cli import fingerprint
from spp_cli.errors import WorkspaceError
from spp_cli.fingerprint import (
    Fingerprint,
    canonical_json,
    changed_inputs,
    differences,
    file_digest,
    folder_digest,
    full_disk_errors,
    leaves,
    versions,
    write_json,
    write_text,
)

KEYS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6)
)
SECTIONS = st.recursive(
    st.dictionaries(KEYS, SCALARS | st.lists(SCALARS, max_size=3), max_size=4),
    lambda sections: st.dictionaries(KEYS, SCALARS | sections, max_size=4),
    max_leaves=8,
)
DIGESTS = st.dictionaries(st.sampled_from(["model", "calibration", "prune"]), st.text(max_size=4))
FINGERPRINTS = st.builds(Fingerprint, SECTIONS, DIGESTS, st.integers(0, 9))


def reordered(value: Any) -> Any:
    """Return an equal value with the keys of every mapping in the opposite order."""
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(value)}
    return value


def with_one_change(settings: dict[str, Any], data: st.DataObject) -> tuple[Any, list[str]]:
    """Return a copy in which one value is another, and the keys that lead there."""
    key = data.draw(st.sampled_from(sorted(settings)))
    if isinstance(settings[key], dict) and settings[key]:
        inner, keys = with_one_change(settings[key], data)
        return {**settings, key: inner}, [key, *keys]
    new = data.draw(SCALARS)
    assume(canonical_json(new) != canonical_json(settings[key]))
    return {**settings, key: new}, [key]


@given(FINGERPRINTS)
def test_the_order_of_keys_does_not_matter(made: Fingerprint) -> None:
    again = Fingerprint(reordered(made.settings), reordered(made.inputs), made.seed)
    assert again.digest == made.digest
    assert not differences(made, again)
    assert not changed_inputs(made, again)


@given(FINGERPRINTS)
def test_a_fingerprint_survives_the_way_through_json(made: Fingerprint) -> None:
    assert Fingerprint(**json.loads(json.dumps(made.record()))).digest == made.digest


def test_a_tuple_and_a_list_are_the_same_setting() -> None:
    as_tuple = Fingerprint({"prune": {"include": ("*",)}}, {}, 0)
    as_list = Fingerprint({"prune": {"include": ["*"]}}, {}, 0)
    assert as_tuple.digest == as_list.digest
    assert not differences(as_tuple, as_list)


@given(FINGERPRINTS, st.data())
def test_any_changed_setting_changes_the_digest_and_is_named(
    made: Fingerprint, data: st.DataObject
) -> None:
    assume(made.settings)
    settings, keys = with_one_change(dict(made.settings), data)
    changed = Fingerprint(settings, made.inputs, made.seed)
    assert changed.digest != made.digest
    assert [difference.key for difference in differences(made, changed)] == [".".join(keys)]


@given(FINGERPRINTS, FINGERPRINTS)
def test_digests_are_equal_exactly_if_nothing_differs(one: Fingerprint, two: Fingerprint) -> None:
    nothing_differs = not differences(one, two) and not changed_inputs(one, two)
    assert (one.digest == two.digest) == nothing_differs


@given(FINGERPRINTS, st.text(max_size=4))
def test_any_changed_input_changes_the_digest_and_is_named(made: Fingerprint, new: str) -> None:
    assume(made.inputs.get("model") != new)
    changed = Fingerprint(made.settings, {**made.inputs, "model": new}, made.seed)
    assert changed.digest != made.digest
    assert changed_inputs(made, changed) == ["model"]
    assert not differences(made, changed)


def nested(values: dict[tuple[str, ...], Any]) -> dict[str, Any]:
    """Return the settings whose ``leaves`` these are."""
    settings: dict[str, Any] = {}
    for (*sections, last), value in values.items():
        section = settings
        for key in sections:
            section = section.setdefault(key, {})
        section[last] = value
    return settings


@given(FINGERPRINTS, st.data())
def test_a_setting_that_was_not_there_yet_is_taken_for_its_default(
    made: Fingerprint, data: st.DataObject
) -> None:
    values = leaves(made.settings)
    assume(values)
    new = data.draw(st.sampled_from(sorted(values)))
    old = replace(made, settings=nested({k: v for k, v in values.items() if k != new}))
    assert not made.is_met_by(old)
    assert replace(made, defaults=frozenset([new])).is_met_by(old)
    # The other way round it is one that is no longer there, and nobody knows what it did.
    assert not replace(old, defaults=frozenset([new])).is_met_by(made)


@pytest.mark.parametrize(
    ("old", "new", "shown"),
    [
        ({"prune": {"sparsity": 0.5}}, {"prune": {"sparsity": 0.75}}, "prune.sparsity: 0.5 → 0.75"),
        ({"a": "wanda"}, {"a": "sparsegpt"}, "a: wanda → sparsegpt"),
        ({"a": ""}, {"a": None}, 'a: "" → null'),
        ({"a": {}}, {"a": {"b": True}}, "a: {} → not set"),
        ({}, {"a": ["é", 1]}, 'a: not set → ["é", 1]'),
        ({"a": 1}, {"a": 1.0}, "a: 1 → 1.0"),
    ],
)
def test_a_difference_reads_as_old_and_new(old: Any, new: Any, shown: str) -> None:
    assert str(differences(Fingerprint(old, {}, 0), Fingerprint(new, {}, 0))[0]) == shown


def test_the_seed_and_the_format_are_differences_too() -> None:
    old, new = Fingerprint({}, {}, 0, format=1), Fingerprint({}, {}, 7, format=2)
    assert list(map(str, differences(old, new))) == ["format of spp: 1 → 2", "seed: 0 → 7"]


def test_versions_name_what_makes_results() -> None:
    assert {"python", "spp", "torch", "transformers"} <= versions().keys()


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the clock a minute forward: what the test has written has not changed for as long."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 60 * 10**9)


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def write_at_the_same_time(file: Path, content: bytes) -> None:
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    file.write_bytes(content)
    os.utime(file, ns=times)


def replace_at_the_same_time(file: Path, content: bytes) -> None:
    shutil.copy2(file, other := file.with_name("other"))
    write_at_the_same_time(other, content)
    other.replace(file)


@pytest.mark.parametrize("change", [written, write_at_the_same_time, replace_at_the_same_time])
@pytest.mark.usefixtures("later")
def test_a_remembered_file_is_read_again_only_if_it_changes(
    tmp_path: Path, change: Callable[[Path, bytes], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, file = tmp_path / "cache" / "digests.json", written(tmp_path / "model", b"one")
    assert file_digest(file, cache) == hashlib.sha256(b"one").hexdigest()
    with monkeypatch.context() as patch:
        patch.setattr(fingerprint, "_sha256", lambda file: pytest.fail(f"{file} is read"))
        file_digest(file, cache)
    change(file, b"two")
    assert file_digest(file, cache) == hashlib.sha256(b"two").hexdigest()


@pytest.mark.parametrize("seconds", [-1, 3600])
@pytest.mark.usefixtures("later")
def test_a_file_that_is_young_or_from_the_future_is_not_remembered(
    tmp_path: Path, seconds: int
) -> None:
    file, cache = written(tmp_path / "young", b"one"), tmp_path / "digests.json"
    os.utime(file, ns=(0, time.time_ns() + seconds * 10**9))
    file_digest(file, cache)
    assert not cache.exists()


@pytest.mark.parametrize("cached", ["", "{", "[]", "null", '{"path": 3}', "[" * 10**5, "\x00"])
@pytest.mark.usefixtures("later")
def test_a_broken_cache_costs_time_only(tmp_path: Path, cached: str) -> None:
    file, cache = written(tmp_path / "model", b"weights"), tmp_path / "digests.json"
    cache.write_text(cached)
    assert file_digest(file, cache) == hashlib.sha256(b"weights").hexdigest()
    assert str(file) in json.loads(cache.read_text())


@pytest.mark.usefixtures("later")
def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path) -> None:
    file = written(tmp_path / "model", b"weights")
    in_the_way = written(tmp_path / "cache", b"")
    assert file_digest(file, in_the_way / "digests.json") == hashlib.sha256(b"weights").hexdigest()


@pytest.mark.usefixtures("later")
def test_the_cache_forgets_files_that_are_gone(tmp_path: Path) -> None:
    gone, kept = written(tmp_path / "gone", b"1"), written(tmp_path / "kept", b"2")
    cache = tmp_path / "digests.json"
    file_digest(gone, cache)
    gone.unlink()
    file_digest(kept, cache)
    assert list(json.loads(cache.read_text())) == [str(kept)]


def test_a_folders_digest_depends_on_names_and_contents_and_not_on_their_order(
    tmp_path: Path,
) -> None:
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    digest = folder_digest(tmp_path, ["a", "b"])
    assert folder_digest(tmp_path, ["b", "a"]) == digest
    assert folder_digest(tmp_path, ["a"]) != digest
    (tmp_path / "a").rename(tmp_path / "c")
    assert folder_digest(tmp_path, ["c", "b"]) != digest


def test_a_file_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match=r"^cannot read .*model: No such file or directory\."):
        file_digest(tmp_path / "model")


def test_json_takes_the_scalars_of_numpy(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    write_json(tmp_path / "metrics.json", {"nats": numpy.float32(0.5), "tokens": numpy.int64(3)})
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"nats": 0.5, "tokens": 3}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    write_text(path, "old")
    # What is written to /dev/full ends in the kernel's own "No space left on device".
    (tmp_path / f".manifest.json.{os.getpid()}.writing").symlink_to("/dev/full")
    with pytest.raises(
        WorkspaceError, match=r"No space left on device\. Finished stages are intac"
    ):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["manifest.json"]


def test_a_file_where_a_folder_should_be_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "workspace").write_text("")
    with pytest.raises(WorkspaceError, match=r"cannot write .*Not a directory\. Something else is"):
        write_text(tmp_path / "workspace" / "config.yaml", "")


def test_what_torch_says_of_a_failing_disk_is_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(WorkspaceError, match=r"the disk fails\. Mend this"),
        full_disk_errors(tmp_path),
    ):
        raise RuntimeError("basic_ios::clear: iostream error")
