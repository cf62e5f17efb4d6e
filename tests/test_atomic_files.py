"""Files and folders that are whole or not there, whoever writes them at the same time."""

from __future__ import annotations

import multiprocessing
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from spp_cli.atomic_files import UnfinishedFile, new_folder, remove_leftovers
from spp_cli.errors import ConfigError

FILES = 40


def fill(target: Path, word: str, barrier: Barrier) -> None:
    barrier.wait()
    try:
        with new_folder(target) as folder:
            for number in range(FILES):
                (folder / str(number)).write_text(word)
    except ConfigError:
        raise SystemExit(2) from None


def test_of_several_that_make_one_folder_one_does_and_the_others_are_refused(
    tmp_path: Path,
) -> None:
    forked, target = multiprocessing.get_context("fork"), tmp_path / "below" / "out"
    barrier = forked.Barrier(5)
    processes = [forked.Process(target=fill, args=(target, word, barrier)) for word in "abcde"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert sorted(process.exitcode for process in processes) == [0, 2, 2, 2, 2]
    assert sorted(int(path.name) for path in target.iterdir()) == list(range(FILES))
    assert len({path.read_text() for path in target.iterdir()}) == 1
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def test_a_folder_that_is_being_made_is_refused_in_one_line(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as folder:
        (folder / "first").write_text("first")
        with (
            pytest.raises(ConfigError, match=r"another process is making .*out\. Wait for it"),
            new_folder(tmp_path / "out"),
        ):
            pass
    assert (tmp_path / "out" / "first").read_text() == "first"
    with pytest.raises(ConfigError, match="is there already"), new_folder(tmp_path / "out"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_has_nothing_of_what_a_killed_process_left_and_an_error_leaves_nothing(
    tmp_path: Path,
) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "old").write_text("old")
    (tmp_path / ".out.writing").touch()

    def fail(folder: Path) -> None:
        assert not list(folder.iterdir())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "out") as folder:
        fail(folder)
    assert not list(tmp_path.iterdir())


def test_only_what_nobody_is_writing_is_left_over(tmp_path: Path) -> None:
    (tmp_path / ".a.1.writing").write_text("half")
    writer = UnfinishedFile(tmp_path / "b", lambda stream: stream.write(b"all"))
    remove_leftovers(tmp_path)
    (held,) = tmp_path.iterdir()
    assert held.name.startswith(".b.")
    writer.finish()
    assert (tmp_path / "b").read_bytes() == b"all"
