"""Copies of hub data sets are read where they are; an unreachable hub is found out fast."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest

from spp_cli.data.hub import HubSet, hub_rows, hub_stream, hub_table, offline_if_unreachable
from spp_cli.errors import DataError

ROWS = [{"text": "one"}, {"text": "two"}]
NOWHERE = "owner/name-that-is-nowhere"


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    switch_on(monkeypatch)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server that answers every request with an error."""
    httpd = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    monkeypatch.setenv("no_proxy", "*")
    endpoint = f"http://127.0.0.1:{httpd.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    switch_on(monkeypatch)
    yield
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def switch_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo an HF_HUB_OFFLINE of the environment."""
    for module in (huggingface_hub.constants, datasets.config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)


def is_offline() -> bool:
    switches = {huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE}
    assert len(switches) == 1
    return switches.pop()


def rows(wanted: HubSet, data_folder: Path | None = None) -> list[Any]:
    folder = str(data_folder) if data_folder else None
    return [row.value for row in hub_rows(wanted, data_folder=folder, remedy="Do this")]


def write_parquet(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


@pytest.mark.usefixtures("unreachable")
def test_an_unreachable_hub_is_one_line_with_the_data_set_and_the_remedy() -> None:
    for wanted, shown in (
        (HubSet(NOWHERE, "en", "test"), rf"{NOWHERE} \(en, split test\)"),
        (HubSet(NOWHERE, None, "train", "a.json.gz"), rf"{NOWHERE} \(a.json.gz\)"),
    ):
        with pytest.raises(DataError, match=f"^data set {shown}: no connection .* Do this$"):
            rows(wanted)


@pytest.mark.usefixtures("unreachable")
def test_without_the_hub_a_block_runs_offline_and_the_switch_is_put_back() -> None:
    with offline_if_unreachable() as reachable:
        assert not reachable
        assert is_offline()
    assert not is_offline()


@pytest.mark.usefixtures("server")
def test_an_unfriendly_answer_of_the_hub_is_an_answer() -> None:
    with offline_if_unreachable() as reachable:
        assert reachable
        assert not is_offline()


def test_offline_mode_of_the_user_stays_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with offline_if_unreachable() as reachable:
        assert not reachable
    assert is_offline()


def test_a_copy_in_the_data_folder_is_read_in_the_hubs_layout(tmp_path: Path) -> None:
    write_parquet(tmp_path / "owner/name/small/test-00000-of-00001.parquet")
    assert rows(HubSet("owner/name", "small", "test"), tmp_path) == ROWS


def test_a_readme_in_the_copy_tells_where_a_subset_lies(tmp_path: Path) -> None:
    write_parquet(tmp_path / "owner/name/data/held_out.parquet")
    (tmp_path / "owner/name/README.md").write_text(
        "---\nconfigs:\n- config_name: small\n  data_files:\n  - split: test\n"
        "    path: data/held_out.parquet\n---\n",
        encoding="utf-8",
    )
    assert rows(HubSet("owner/name", "small", "test"), tmp_path) == ROWS


def test_one_file_of_a_copy_is_read_alone(tmp_path: Path) -> None:
    folder = tmp_path / "owner/name/en"
    folder.mkdir(parents=True)
    with gzip.open(folder / "shard.json.gz", "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in ROWS)
    (folder / "other.json.gz").write_bytes(b"never read")
    assert rows(HubSet("owner/name", "en", "train", "en/shard.json.gz"), tmp_path) == ROWS
    with pytest.raises(DataError, match=r"\(en/none.json\): the copy in .* lacks this file"):
        rows(HubSet("owner/name", "en", "train", "en/none.json"), tmp_path)


def test_a_split_that_a_copy_lacks_is_told_with_those_it_has(tmp_path: Path) -> None:
    write_parquet(tmp_path / "owner/name/train-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"Bad split: test\. Available splits: \['train'\]"):
        rows(HubSet("owner/name", None, "test"), tmp_path)


def layout(folder: Path) -> Path:
    """Lay out a data set of two files and two splits as the hub has them."""
    for number in range(2):
        write_parquet(folder / f"data/train-0000{number}-of-00002.parquet")
    write_parquet(folder / "data/validation-00000-of-00001.parquet")
    return folder


def test_a_folder_in_the_hubs_layout_is_read_by_number(tmp_path: Path) -> None:
    folder = layout(tmp_path / "set")
    wanted = HubSet(str(folder), None, "train")
    table = hub_table(wanted, folder=folder, remedy="Do this")
    assert [row.value for row in table] == [*ROWS, *ROWS]
    assert table[2].place == f"{folder} row 3"
    with pytest.raises(DataError, match=r"Unknown split .test.\. .* Do this$"):
        hub_table(HubSet(str(folder), None, "test"), folder=folder, remedy="Do this")


def test_a_stream_has_all_rows_in_an_order_that_the_seed_decides(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    lines = [json.dumps({"text": str(number)}) for number in range(50)]
    (folder / "data/train.jsonl").write_text("\n".join(lines))
    wanted = HubSet(str(folder), None, "train")

    def streamed(seed: int) -> list[str]:
        rows = hub_stream(wanted, folder=folder, remedy="Do this", seed=seed)
        return [row.value["text"] for row in rows]

    assert sorted(streamed(0), key=int) == list(map(str, range(50)))
    assert streamed(0) == streamed(0)
    assert len({tuple(streamed(seed)) for seed in range(3)}) == 3


@pytest.mark.usefixtures("unreachable")
def test_a_stream_of_an_unreachable_hub_is_one_line_too() -> None:
    with pytest.raises(DataError, match=r"no connection .* Do this$"):
        next(hub_stream(HubSet(NOWHERE, None, "train"), folder=None, remedy="Do this", seed=0))
