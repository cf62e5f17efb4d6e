"""spp finetune --preview: what would be trained on, in a pipe and in a terminal."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from end_to_end.mistakes.place import contents, typed
from end_to_end.terminals import in_a_terminal

from spp_cli.config import TrainingDataConfig
from spp_cli.data.instructions import training_rows
from spp_cli.data.pools import Wanted
from spp_cli.models.loading import load_tokenizer
from spp_cli.progress import Silent

ROWS = [{"instruction": f"Add {number}.", "output": f"x + {number}"} for number in range(30)]
PREVIEW = "spp finetune --data rows.jsonl --no-train-on-prompt --sequence-length 64 --preview"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose pruned model has only zeros for weights: whoever reads the file fails."""
    folder = tmp_path_factory.mktemp("preview")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("SPP_WORKSPACE", raising=False)
        end = typed("spp prune --method magnitude --run r")
    assert end.code == 0, end.stderr
    weights = folder / "workspace/r/prune/model.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))
    rows = [{"instruction": "Say nothing.", "output": ""}, *ROWS]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.delenv("SPP_WORKSPACE", raising=False)


def test_rows_are_shown_as_the_model_sees_them_and_nothing_is_written() -> None:
    before = contents()
    end = typed(f"{PREVIEW} 2")
    assert (end.code, end.stderr) == (0, "")
    lines = end.stdout.splitlines()
    assert lines[0].startswith("rows.jsonl (alpaca), at most 64 tokens a row; ⟦trained on⟧")
    assert [line for line in lines if line.startswith("⟦")] == ["⟦x + 0</s>⟧", "⟦x + 1</s>⟧"]
    assert sum(line.startswith("<s>Below is an instruction") for line in lines) == 2
    assert lines[-1] == "left out on the way: 1 empty"
    assert contents() == before


def test_what_is_shown_is_what_is_trained_on_first() -> None:
    tokenizer = load_tokenizer(Path("workspace/r/prune"))
    config = TrainingDataConfig(source="rows.jsonl", train_on_prompt=False)
    train, _ = training_rows(Wanted(config, tokenizer, 64, seed=0, demo=True), Silent())
    shown = json.loads(typed(f"{PREVIEW} 99 --json").stdout)["rows"]
    assert [row["length"] for row in shown] == train.lengths.tolist()
    assert [row["trained"] for row in shown] == [
        sum(label != -100 for label in train[index]["labels"]) for index in range(len(train))
    ]


@pytest.mark.slow
def test_a_terminal_has_colours_for_brackets() -> None:
    kept = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    code, shown = in_a_terminal([*PREVIEW.split()[1:], "1"], Path(), kept)
    assert code == 0
    assert "\x1b[32mx + 0</s>\x1b[0m" in shown
    assert "⟦" not in shown
