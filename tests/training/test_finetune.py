"""spp finetune: what is trained, what is kept, and what a kill costs."""

from __future__ import annotations

import json
import math
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from conftest import COMMON, add_tokenizer, make_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from spp_cli.adapters.spp import SPP, SPPLinear
from spp_cli.config import SppConfig
from spp_cli.errors import (
    CheckFailed,
    ConfigError,
    MissingExtraError,
    NumericalError,
    WorkspaceError,
)
from spp_cli.progress import Silent
from spp_cli.sparsity.masks import KeepMasks
from spp_cli.stages import finetune, prune
from spp_cli.stages.sparse_model import pruned_model
from spp_cli.stages.stage import Result, Sources
from spp_cli.stages.training_data import training_data
from spp_cli.training.arguments import training_arguments
from spp_cli.training.callbacks import REPRODUCIBLE, KeepBest, Progress
from spp_cli.training.checkpoints import newest_checkpoint
from spp_cli.training.mask_check import MaskCheck
from spp_cli.training.trainer import AdapterTrainer, pad_rows


class Talk(Silent):
    """A reporter that keeps what was said, and counts the bars on the screen."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []
        self.open_bars = 0

    @contextmanager
    def task(self, name: str, total: float, unit: str = ""):
        self.open_bars += 1
        try:
            with super().task(name, total, unit) as task:
                yield task
        finally:
            self.open_bars -= 1

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """A tiny Llama with the embedded tokenizer, pruned at 2:4."""
    root = tmp_path_factory.mktemp("pruned")
    dense = make_model("llama", root / "dense", vocab_size=4096)
    return pruned_by_magnitude(add_tokenizer(dense), root / "prune")


def pruned_by_magnitude(dense: Path, target: Path) -> Sources:
    target.mkdir()
    config = SppConfig.model_validate({"prune": {"method": "magnitude", "pattern": "2:4"}})
    prune.run(config, Sources(dense, True), target, Silent())
    return Sources(dense, True, {"prune": target})


def config_of(**changes: object) -> SppConfig:
    data = {"sequence_length": 32, "samples": 24, "validation_samples": 4}
    settings = {
        "data": data,
        "learning_rate": 0.05,
        "batch_size": 2,
        "gradient_accumulation_steps": 1,
        "epochs": 1,
        "evaluate_every": 3,
        "checkpoint_every": 3,
    }
    return SppConfig.model_validate({"finetune": {**settings, **changes}})


def train(sources: Sources, target: Path, reporter: Silent | None = None, **changes) -> Result:
    target.mkdir(exist_ok=True)
    return finetune.run(config_of(**changes), sources, target, reporter or Silent())


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter.safetensors")


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def reproducible(folder: Path) -> list[dict]:
    """Return the log without what it says of the machine."""
    return [{key: line[key] for key in REPRODUCIBLE if key in line} for line in log_of(folder)]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_it_lowers_the_loss_and_reports_perplexity_before_and_after(sources, tmp_path):
    talk = Talk()
    metrics = train(sources, tmp_path / "a", talk).metrics
    assert metrics["validation_loss_after"] < metrics["validation_loss_before"]
    expected = math.exp(metrics["validation_loss_after"])
    assert metrics["validation_perplexity_after"] == pytest.approx(expected)
    assert any("validation perplexity" in line for line in talk.said)
    assert metrics["steps"] == 12
    logged = log_of(tmp_path / "a")
    assert [line["step"] for line in logged if "loss" in line] == list(range(1, 13))
    validated = [line["step"] for line in logged if "eval_loss" in line]
    assert validated == [0, 3, 6, 9, 12]
    assert "each step: 2 rows: 2 at once × 1 times × 1 process" in talk.said
    picture = (tmp_path / "a/loss.png").read_bytes()
    assert picture.startswith(b"\x89PNG")


def test_the_log_says_how_fast_in_how_much_memory_and_where_the_masks_were_checked(
    sources, tmp_path
):
    train(sources, tmp_path / "a", check_mask_every=4)
    steps = {line["step"]: line for line in log_of(tmp_path / "a") if "loss" in line}
    assert all(line["tokens_per_second"] > 0 for line in steps.values())
    assert all(line["process_peak_bytes"] > 10**7 for line in steps.values())
    digest = KeepMasks(sources.stages["prune"]).digest
    checked = {step: line["mask_digest"] for step, line in steps.items() if "mask_digest" in line}
    assert checked == {4: digest, 8: digest, 12: digest}


def test_every_adapter_trains_and_nothing_else(sources, tmp_path):
    metrics = train(sources, tmp_path / "a").metrics
    found = adapter(tmp_path / "a")
    sizes = [tensor.numel() for tensor in found.values()]
    assert metrics["trainable_parameters"] == sum(sizes)
    assert metrics["total_parameters"] == metrics["trainable_parameters"] + sum(
        tensor.numel()
        for tensor in load_file(sources.stages["prune"] / "model.safetensors").values()
    )
    started_as_zero = [tensor for name, tensor in found.items() if name.endswith(".B")]
    assert all(tensor.count_nonzero() for tensor in started_as_zero)


def test_a_packed_base_gives_the_same_losses_and_adapter_bit_for_bit(sources, tmp_path):
    dense = train(sources, tmp_path / "dense").metrics
    packed = train(sources, tmp_path / "packed", base_storage="packed").metrics
    assert packed == dense
    assert same(adapter(tmp_path / "packed"), adapter(tmp_path / "dense"))


def test_the_dense_model_teaches_when_asked(sources, tmp_path):
    plain = train(sources, tmp_path / "plain").metrics
    taught = train(sources, tmp_path / "taught", distill=0.5).metrics
    assert taught["validation_loss_after"] < taught["validation_loss_before"]
    # Validation is of the next token alone, so that losses compare.
    assert taught["validation_loss_before"] == plain["validation_loss_before"]
    assert not same(adapter(tmp_path / "taught"), adapter(tmp_path / "plain"))


@pytest.mark.parametrize("warmup", [0, 0.5])
def test_b_learns_as_much_faster_as_it_was_told(warmup, sources, tmp_path):
    once = {"max_steps": 1, "evaluate_every": 1, "checkpoint_every": 1, "warmup_ratio": warmup}
    plain, faster = (
        (train(sources, tmp_path / str(ratio), b_learning_rate_ratio=ratio, **once), ratio)
        for ratio in (1, 4)
    )
    one, other = (adapter(tmp_path / str(ratio)) for _, ratio in (plain, faster))
    for name, weight in one.items():  # B starts as zero, and AdamW's first step is its rate
        torch.testing.assert_close(other[name], weight * (4 if name.endswith(".B") else 1))


def test_a_teacher_of_another_vocabulary_is_refused(sources, tmp_path):
    other = make_model("llama", tmp_path / "other", vocab_size=128)
    with pytest.raises(ConfigError, match="whose vocabulary of 128 is not that of the pruned"):
        train(Sources(other, True, sources.stages), tmp_path / "a", distill=0.5)


def test_the_same_seed_gives_the_same_adapter_and_another_seed_another(sources, tmp_path):
    train(sources, tmp_path / "a")
    train(sources, tmp_path / "b")
    assert same(adapter(tmp_path / "a"), adapter(tmp_path / "b"))
    (tmp_path / "c").mkdir()
    finetune.run(config_of().model_copy(update={"seed": 1}), sources, tmp_path / "c", Silent())
    assert not same(adapter(tmp_path / "a"), adapter(tmp_path / "c"))


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def dying_at(step: int):
    """Return a training step that is killed after so many steps."""
    original = AdapterTrainer.training_step

    def dying(self, *arguments, **keywords):
        if self.state.global_step == step:
            raise Killed
        return original(self, *arguments, **keywords)

    return dying


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_rate_rises_from_the_first_step_to_its_peak_and_never_is_zero(
    schedule, sources, tmp_path
):
    train(sources, tmp_path / "a", schedule=schedule, warmup_ratio=0.25)
    rates = [line["learning_rate"] / 0.05 for line in log_of(tmp_path / "a") if "loss" in line]
    decay = {
        "linear": lambda since: 1 - since,
        "cosine": lambda since: 0.5 + 0.5 * math.cos(math.pi * since),
        "constant": lambda since: 1,
    }[schedule]
    assert rates == pytest.approx([1 / 3, 2 / 3, 1, *(decay(step / 9) for step in range(9))])
    assert min(rates) > 0


def test_without_a_warm_up_the_first_step_has_the_peak_rate(sources, tmp_path):
    train(sources, tmp_path / "a", warmup_ratio=0, max_steps=2, evaluate_every=2)
    rates = [line["learning_rate"] for line in log_of(tmp_path / "a") if "loss" in line]
    assert rates == pytest.approx([0.05, 0.025])


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_what_was_interrupted_after_the_last_step_trains_no_more(
    schedule, sources, tmp_path, monkeypatch
):
    steps = {"max_steps": 4, "evaluate_every": 2, "checkpoint_every": 2}  # of 12 in an epoch
    whole = train(sources, tmp_path / "whole", schedule=schedule, **steps)

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(AdapterTrainer, "load_best", killed)
        with pytest.raises(Killed):
            train(sources, tmp_path / "cut", schedule=schedule, **steps)
    (tmp_path / "cut/log.jsonl").unlink()
    cut = train(sources, tmp_path / "cut", schedule=schedule, **steps)
    assert cut.metrics == whole.metrics
    assert cut.metrics["steps"] == 4
    assert reproducible(tmp_path / "cut") == reproducible(tmp_path / "whole")
    for name in ("adapter.safetensors", "adapter_config.json", "loss.png"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("step", [2, 3, 7, 11])
def test_what_was_interrupted_at_any_step_ends_in_the_same_adapter_bit_for_bit(
    step, sources, tmp_path, monkeypatch
):
    whole = train(sources, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(AdapterTrainer, "training_step", dying_at(step))
        with pytest.raises(Killed):
            train(sources, tmp_path / "cut")
    talk = Talk()
    cut = train(sources, tmp_path / "cut", talk)
    assert same(adapter(tmp_path / "whole"), adapter(tmp_path / "cut"))
    assert cut.metrics == whole.metrics
    assert reproducible(tmp_path / "cut") == reproducible(tmp_path / "whole")
    resumed = [line for line in talk.said if line.startswith("going on from step")]
    assert resumed == ([f"going on from step {step // 3 * 3}"] if step >= 3 else [])


def test_what_memory_was_too_small_for_resumes_with_smaller_batches_to_the_same_training(
    sources, tmp_path, monkeypatch
):
    whole = train(sources, tmp_path / "whole").metrics
    with monkeypatch.context() as patch:
        patch.setattr(AdapterTrainer, "training_step", dying_at(7))
        with pytest.raises(Killed):
            train(sources, tmp_path / "cut")
    talk = Talk()
    less = {"batch_size": 1, "gradient_accumulation_steps": 2, "gradient_checkpointing": True}
    cut = train(sources, tmp_path / "cut", talk, base_storage="packed", **less).metrics
    assert "going on from step 6" in talk.said
    for name in ("train_loss", "validation_loss_after"):
        assert cut[name] == pytest.approx(whole[name], rel=1e-5)
    assert [cut[key] for key in ("steps", "best_step", "rows_per_step", "train")] == [
        whole[key] for key in ("steps", "best_step", "rows_per_step", "train")
    ]
    for name, weight in adapter(tmp_path / "whole").items():
        torch.testing.assert_close(adapter(tmp_path / "cut")[name], weight, rtol=1e-3, atol=1e-5)


def test_checkpoints_hold_all_that_training_needs_but_never_the_base(sources, tmp_path):
    train(sources, tmp_path / "a")
    checkpoints = sorted((tmp_path / "a/.resume").glob("checkpoint-*"))
    assert 1 <= len(checkpoints) <= 2
    names = {path.name for path in checkpoints[-1].iterdir()}
    assert {"adapter.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"} <= names
    assert any(name.startswith("rng_state") for name in names)
    tensors = adapter(checkpoints[-1])
    assert {name.rpartition(".")[2] for name in tensors} == {"A", "B"}
    base = (sources.stages["prune"] / "model.safetensors").stat().st_size
    assert all(path.stat().st_size < base / 2 for path in checkpoints[-1].iterdir())


def test_a_truncated_checkpoint_is_left_out_with_a_word_about_it(sources, tmp_path):
    train(sources, tmp_path / "a")
    folder = tmp_path / "a/.resume"
    steps = sorted(int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*"))
    file = folder / f"checkpoint-{steps[-1]}/optimizer.pt"
    file.write_bytes(file.read_bytes()[:100])
    silent = Silent()
    found = newest_checkpoint(folder, silent)
    assert found == (folder / f"checkpoint-{steps[-2]}" if len(steps) > 1 else None)
    assert silent.warnings == [f"the checkpoint of step {steps[-1]} is unfinished; it is left out"]


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_of_junk_is_named_with_what_to_do(sources, tmp_path, monkeypatch, name):
    monkeypatch.setattr(AdapterTrainer, "training_step", dying_at(7))
    with pytest.raises(Killed):
        train(sources, tmp_path / "a")
    newest = newest_checkpoint(tmp_path / "a/.resume", Silent())
    (newest / name).write_bytes(b"j" * (newest / name).stat().st_size)
    with pytest.raises(WorkspaceError, match=r"checkpoint-\d+ is damaged: .*Remove this folder"):
        train(sources, tmp_path / "a")


def test_the_best_adapter_is_kept_and_not_the_last(sources, tmp_path):
    # A rate so high that losses go up and down: which one is best is chance, the last is seldom.
    metrics = train(sources, tmp_path / "a", learning_rate=30.0, schedule="constant").metrics
    logged = log_of(tmp_path / "a")
    losses = {line["step"]: line["eval_loss"] for line in logged if "eval_loss" in line}
    best = min(losses, key=losses.__getitem__)
    assert metrics["best_step"] == best
    assert metrics["validation_loss_after"] == losses[best]
    kept = tmp_path / "a/.resume/best"
    assert same(adapter(tmp_path / "a"), adapter(kept))
    last = tmp_path / f"a/.resume/checkpoint-{metrics['steps']}"
    assert same(adapter(tmp_path / "a"), adapter(last)) == (best == metrics["steps"])


def test_a_loss_of_nan_stops_with_the_step_and_a_hint_once_the_bar_is_gone(sources, tmp_path):
    talk = Talk()
    with pytest.raises(NumericalError, match=r"(nan|inf) at step \d+\. Lower finetune"):
        train(sources, tmp_path / "a", talk, learning_rate=1e30, max_grad_norm=1e30)
    assert talk.open_bars == 0
    assert not (tmp_path / "a/adapter.safetensors").exists()


def test_after_nan_the_best_adapter_is_still_there_and_the_message_says_where(
    sources, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(AdapterTrainer, "training_step", dying_at(7))
        with pytest.raises(Killed):
            train(sources, tmp_path / "a")
    # A disk that lost bits: what training goes on from has the right size and holds NaN.
    rotten = tmp_path / "a/.resume/checkpoint-6/adapter.safetensors"
    tensors = {
        name: torch.full_like(tensor, math.nan) for name, tensor in load_file(rotten).items()
    }
    size = rotten.stat().st_size
    save_file(tensors, rotten, {})
    assert rotten.stat().st_size == size
    with pytest.raises(
        NumericalError, match=r"loss is nan at step 7\..* of step \d, is in "
    ) as told:
        train(sources, tmp_path / "a")
    kept = Path(str(told.value).partition(" is in ")[2].partition(". The same command")[0])
    assert all(tensor.isfinite().all() for tensor in adapter(kept).values())


def test_a_base_weight_that_changes_stops_training_with_its_layer_and_the_step(
    sources, tmp_path, monkeypatch
):
    original = AdapterTrainer.training_step

    def spoiling(self, model, *arguments, **keywords):
        if self.state.global_step == 4:
            layer = model.get_submodule("model.layers.1.mlp.up_proj")
            pruned = (layer.weight == 0).nonzero()[0].tolist()
            layer.weight.data[tuple(pruned)] = 1.0
        return original(self, model, *arguments, **keywords)

    monkeypatch.setattr(AdapterTrainer, "training_step", spoiling)
    with pytest.raises(
        CheckFailed, match=r"weight of model\.layers\.1\.mlp\.up_proj has changed at step 6"
    ):
        train(sources, tmp_path / "a", check_mask_every=2)
    assert not (tmp_path / "a/adapter.safetensors").exists()


class Adding(SPPLinear):
    """An adapter that breaks its promise: it adds to every weight, the pruned ones too."""

    def effective(self, W, A, B):
        return super().effective(W, A, B) + 1e-6


def test_a_zero_that_an_adapter_fills_is_found_with_its_layer_and_the_step(sources):
    sparse = pruned_model(sources.stages["prune"], dtype=None, trust_remote_code=False)
    names = sparse.choose(("*.layers.1.*",), ())
    sparse.load(torch.device("cpu"), SPP(), names)
    check = MaskCheck(sparse.decoder.blocks, sparse.decoder.path, sparse.masks)
    check.run(6)
    sparse.model.get_submodule("model.layers.1.self_attn.q_proj").__class__ = Adding
    half = "2048 pruned weights of model.layers.1.self_attn.q_proj are not zero at step 7"
    with pytest.raises(CheckFailed, match=half):
        check.run(7)


def test_a_checkpoint_of_another_number_of_processes_is_refused_and_kept(sources, tmp_path):
    train(sources, tmp_path / "a")
    newest = tmp_path / "a/.resume/checkpoint-12"
    record = json.loads((newest / "complete.json").read_text())
    assert record["processes"] == 1
    (newest / "complete.json").write_text(json.dumps({**record, "processes": 2}))
    with pytest.raises(WorkspaceError, match="made by 2 processes, and there are 1: start as many"):
        train(sources, tmp_path / "a")
    assert newest.exists()


@pytest.mark.parametrize("report", ["tensorboard", "wandb"])
def test_a_report_whose_package_is_missing_is_refused_before_the_work(
    report, sources, tmp_path, monkeypatch
):
    for package in ("tensorboard", "tensorboardX", "wandb"):
        monkeypatch.setitem(sys.modules, package, None)  # as if not installed
    with pytest.raises(MissingExtraError, match=rf'finetune.report_to: {report} .*\[{report}\]"'):
        train(sources, tmp_path / "a", report_to=(report,))
    assert not (tmp_path / "a/.resume").exists()


def test_without_matplotlib_training_ends_well_and_says_what_is_missing(
    sources, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    talk = Talk()
    train(sources, tmp_path / "a", talk, max_steps=2)
    assert any(line.startswith("loss.png needs the package matplotlib") for line in talk.said)
    assert (tmp_path / "a/adapter.safetensors").exists()
    assert not (tmp_path / "a/loss.png").exists()


def test_a_pruned_model_that_gives_nan_itself_is_not_blamed_on_the_learning_rate(tmp_path):
    progress = Progress(Silent(), tmp_path / "log.jsonl", tmp_path / "progress.json")
    state = SimpleNamespace(global_step=0, max_steps=1, log_history=[])
    with pytest.raises(
        NumericalError, match=r"of the pruned model itself is nan\. Try finetune\.prec"
    ):
        progress.on_log(None, state, None, {"eval_loss": math.nan})


def test_the_last_step_is_validated_whatever_the_interval(sources, tmp_path):
    train(sources, tmp_path / "a", evaluate_every=5)
    logged = log_of(tmp_path / "a")
    assert [line["step"] for line in logged if "eval_loss" in line] == [0, 5, 10, 12]


def test_no_loss_is_lost_when_lines_are_rarer_than_checkpoints(sources, tmp_path, monkeypatch):
    def rarely(*arguments, **keywords):
        settings = training_arguments(*arguments, **keywords)
        settings.logging_steps = 5
        return settings

    monkeypatch.setattr(finetune, "training_arguments", rarely)
    metrics = train(sources, tmp_path / "a").metrics
    logged = log_of(tmp_path / "a")
    losses = {line["step"]: line["loss"] for line in logged if "loss" in line}
    assert list(losses) == [3, 5, 6, 9, 10, 12]
    weights = [3, 2, 1, 3, 1, 2]  # steps that each line speaks for
    mean = sum(loss * weight for loss, weight in zip(losses.values(), weights, strict=True)) / 12
    assert metrics["train_loss"] == pytest.approx(mean)
    monkeypatch.undo()
    assert metrics["train_loss"] == pytest.approx(
        train(sources, tmp_path / "b").metrics["train_loss"]
    )


@pytest.fixture(scope="module")
def gemma4(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """A tiny pruned Gemma 4: its own loss is the mean over a batch, whatever the step has."""
    root = tmp_path_factory.mktemp("gemma4")
    torch.manual_seed(0)
    text = {"hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 4096}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_kv_shared_layers": 0}
    text |= {"head_dim": 16, "global_head_dim": 16, "sliding_window": 64, **COMMON}
    text |= {"layer_types": ["sliding_attention", "full_attention"], "vocab_size": 4096}
    config = transformers.Gemma4Config(text_config=text, vision_config=None, audio_config=None)
    model = transformers.Gemma4ForConditionalGeneration(config)
    assert not model.accepts_loss_kwargs
    model.get_input_embeddings().weight.data.mul_(8)  # else all predictions are alike
    model.save_pretrained(root / "dense")
    return pruned_by_magnitude(add_tokenizer(root / "dense"), root / "prune")


def uneven_rows(folder: Path) -> dict[str, object]:
    """Return data settings of rows whose answers are of very different lengths."""
    rows = [
        {"prompt": f"x = {n}", "completion": f"\ny = {n}" + " * x" * (n * 7 % 12)}
        for n in range(28)
    ]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    data = {"source": str(folder / "rows.jsonl"), "train_on_prompt": False}
    return {**data, "sequence_length": 48, "validation_samples": 4}


@pytest.mark.parametrize("model", ["sources", "gemma4"])
def test_accumulated_gradients_are_those_of_a_larger_batch(model, tmp_path, request):
    model, data = request.getfixturevalue(model), uneven_rows(tmp_path)
    for at_once in (8, 2, 1):
        how = {"batch_size": at_once, "gradient_accumulation_steps": 8 // at_once}
        train(model, tmp_path / str(at_once), data=data, max_steps=2, evaluate_every=2, **how)
    whole = {line["step"]: line for line in log_of(tmp_path / "8") if "loss" in line}
    for at_once in (2, 1):
        for line in log_of(tmp_path / str(at_once)):
            for key in {"loss", "grad_norm"} & line.keys():
                assert line[key] == pytest.approx(whole[line["step"]][key], rel=1e-4), key
        one, other = adapter(tmp_path / "8"), adapter(tmp_path / str(at_once))
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("packing", [False, True])
def test_the_validation_loss_is_the_mean_over_tokens_whatever_the_batch_size(
    packing, sources, tmp_path, monkeypatch
):
    rows: list[dict] = []

    def seen(*arguments):
        data = training_data(*arguments)
        rows[:] = [data.validation[index] for index in range(len(data.validation))]
        return data

    monkeypatch.setattr(finetune, "training_data", seen)
    data = {**uneven_rows(tmp_path), "validation_samples": 7, "packing": packing}
    found = [
        train(
            sources, tmp_path / str(size), data=data, max_steps=1, evaluate_every=1, batch_size=size
        ).metrics["validation_loss_before"]
        for size in (1, 3, 16)
    ]
    model = AutoModelForCausalLM.from_pretrained(sources.stages["prune"])
    nats = tokens = 0
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        with torch.no_grad():
            scores = model(ids).logits[0, :-1].log_softmax(-1)
        counted = labels[0, 1:] != -100
        nats -= scores[counted, labels[0, 1:][counted]].sum().item()
        tokens += int(counted.sum())
    assert len({len(row["input_ids"]) for row in rows}) > 1
    assert found == pytest.approx([nats / tokens] * 3, rel=1e-6)


def test_a_mixture_that_asks_for_balanced_experts_has_it_in_the_loss_and_not_in_validation(
    tmp_path,
):
    mixture = {"vocab_size": 4096, "output_router_logits": True}
    dense = add_tokenizer(make_model("qwen3_moe", tmp_path / "dense", **mixture))
    source = pruned_by_magnitude(dense, tmp_path / "prune")
    once = {"data": uneven_rows(tmp_path), "max_steps": 1, "evaluate_every": 1, "batch_size": 8}
    for factor in (0.0, 0.5):
        path = source.stages["prune"] / "config.json"
        config = {**json.loads(path.read_text()), "router_aux_loss_coef": factor}
        path.write_text(json.dumps(config))
        train(source, tmp_path / str(factor), **once)
    plain, balanced = (
        {key: line[key] for line in log_of(tmp_path / str(f)) for key in line} for f in (0.0, 0.5)
    )
    # Of four experts two are taken: were all taken alike, their balance would be 2.
    assert balanced["loss"] - plain["loss"] == pytest.approx(0.5 * 2, rel=0.2)
    before = [log_of(tmp_path / str(factor))[0]["eval_loss"] for factor in (0.0, 0.5)]
    assert before[0] == before[1]


def test_recomputed_activations_give_the_same_adapter(sources, tmp_path):
    train(sources, tmp_path / "a", max_steps=3)
    train(sources, tmp_path / "b", max_steps=3, gradient_checkpointing=True)
    one, other = adapter(tmp_path / "a"), adapter(tmp_path / "b")
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-5)


def test_bfloat16_trains_on_a_cpu_and_keeps_the_adapter_in_float32(sources, tmp_path):
    metrics = train(sources, tmp_path / "a", precision="bfloat16").metrics
    assert metrics["validation_loss_after"] < metrics["validation_loss_before"]
    assert all(tensor.dtype == torch.float32 for tensor in adapter(tmp_path / "a").values())


@pytest.mark.parametrize("storage", ["dense", "packed"])
def test_in_float16_the_loss_is_scaled_so_that_no_gradient_vanishes(
    storage, sources, tmp_path, monkeypatch
):
    original = AdapterTrainer.get_batch_samples

    def of_a_large_step(*arguments):
        batches, count = original(*arguments)
        return batches, count * 1024

    monkeypatch.setattr(AdapterTrainer, "get_batch_samples", of_a_large_step)
    once = {"max_steps": 1, "evaluate_every": 1, "batch_size": 24, "base_storage": storage}
    for precision in ("float32", "float16"):
        train(sources, tmp_path / precision, precision=precision, **once)
    exact, half = (
        next(line["grad_norm"] for line in log_of(tmp_path / precision) if "loss" in line)
        for precision in ("float32", "float16")
    )
    assert half == pytest.approx(exact, rel=2e-3)


def test_whether_the_loss_is_scaled_is_a_matter_of_the_model_and_not_of_the_word(tmp_path):
    assert training_arguments(
        config_of(precision="auto").finetune,
        tmp_path,
        rows=8,
        seed=0,
        device=torch.device("cuda"),
        in_float16=True,
    ).fp16


def test_training_in_float16_resumes_bit_for_bit_with_the_scale_that_it_had(
    sources, tmp_path, monkeypatch
):
    # So high a scale that the first gradients overflow, and it has to come down.
    high = partial(torch.amp.GradScaler, init_scale=2.0**27)
    monkeypatch.setattr(torch.amp, "GradScaler", high)
    how = {"precision": "float16", "max_steps": 10, "evaluate_every": 5, "checkpoint_every": 5}
    whole = train(sources, tmp_path / "whole", **how)
    with monkeypatch.context() as patch:
        patch.setattr(AdapterTrainer, "training_step", dying_at(7))
        with pytest.raises(Killed):
            train(sources, tmp_path / "cut", **how)
    scaler = torch.load(tmp_path / "cut/.resume/checkpoint-5/scaler.pt", weights_only=True)
    assert scaler["scale"] < 2.0**27
    cut = train(sources, tmp_path / "cut", **how)
    assert same(adapter(tmp_path / "whole"), adapter(tmp_path / "cut"))
    assert cut.metrics == whole.metrics
    assert reproducible(tmp_path / "cut") == reproducible(tmp_path / "whole")


def test_a_step_on_packed_rows_is_a_step_on_the_rows(sources, tmp_path):
    rows = [{"prompt": f"x = {n}", "completion": f"\ny = {n} * x"} for n in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    data = {"source": str(tmp_path / "rows.jsonl"), "train_on_prompt": False}
    data |= {"sequence_length": 48, "validation_samples": 2}
    how = {"batch_size": 24, "max_steps": 1, "evaluate_every": 1}
    plain = train(sources, tmp_path / "a", data=data, **how).metrics
    talk = Talk()
    packed = train(sources, tmp_path / "b", talk, data={**data, "packing": True}, **how).metrics
    sequences, fill = packed["train"].pop("sequences"), packed["train"].pop("fill")
    assert packed["train"] == plain["train"]
    assert 1 < sequences < plain["train"]["rows"] == 22
    assert fill == pytest.approx(plain["train"]["tokens"] / (48 * sequences), abs=1e-4)
    assert any(f"in {sequences} sequences that are" in line for line in talk.said)
    assert packed["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-5)
    one, other = adapter(tmp_path / "a"), adapter(tmp_path / "b")
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-4)


def test_only_the_target_modules_get_an_adapter(sources, tmp_path):
    metrics = train(sources, tmp_path / "a", target_modules=["*.mlp.*"], max_steps=3).metrics
    assert metrics["linears"] == 6
    assert all(".mlp." in name for name in adapter(tmp_path / "a"))


def test_checkpoints_may_come_more_often_than_validations(sources, tmp_path):
    train(sources, tmp_path / "a", evaluate_every=6, checkpoint_every=4)
    train(sources, tmp_path / "b", evaluate_every=6, checkpoint_every=6)
    assert same(adapter(tmp_path / "a"), adapter(tmp_path / "b"))
    steps = {path.name for path in (tmp_path / "a/.resume").glob("checkpoint-*")}
    assert steps == {"checkpoint-8", "checkpoint-12"}


def test_the_lowest_validation_loss_decides_and_the_pruned_model_counts_as_step_0(tmp_path):
    saved = []

    def save(folder: Path) -> None:
        folder.mkdir()
        saved.append(folder)

    best = KeepBest(tmp_path / "best", save)
    for step, loss in ((0, 3.0), (5, 3.5), (10, 2.0), (15, 2.0)):
        state = SimpleNamespace(is_world_process_zero=True, global_step=step)
        best.on_evaluate(None, state, None, {"eval_loss": loss})
        assert best.best() == ({"loss": 3.0, "step": 0} if step < 10 else {"loss": 2.0, "step": 10})
    assert len(saved) == 2


def test_padding_is_neither_attended_to_nor_trained_on():
    batch = pad_rows(
        [
            {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
            {"input_ids": [8], "labels": [8]},
        ]
    )
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_beside_packed_rows_padding_is_one_more_row():
    batch = pad_rows(
        [
            {"input_ids": [5, 6, 7, 8], "labels": [5, 6, -100, 8], "position_ids": [0, 1, 0, 1]},
            {"input_ids": [9, 4], "labels": [9, 4], "position_ids": [0, 1]},
        ]
    )
    assert batch.keys() == {"input_ids", "labels", "position_ids"}
    assert batch["labels"].tolist() == [[5, 6, -100, 8], [9, 4, -100, -100]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1], [0, 1, 0, 1]]
