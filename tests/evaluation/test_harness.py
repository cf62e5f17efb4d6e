"""Tasks of lm-evaluation-harness on models in memory: scores, names, own tasks, and errors."""

from __future__ import annotations

import copy
import json
import sys

import pytest
import torch
from lm_eval.config.task import TaskConfig

from spp_cli.config import EvalConfig
from spp_cli.errors import ConfigError, DataError, MissingExtraError, NumericalError
from spp_cli.evaluation.harness import (
    ZEROSHOT,
    evaluate_task,
    expand_tasks,
    harness_version,
    load_tasks,
    zeroshot_mean,
)
from spp_cli.evaluation.tasks import find_tasks, shots_of
from spp_cli.progress import Silent

ROWS = [
    {"question": f"{a} + {b} =", "options": [str(a + b), str(a - b), "apple pie"], "right": 0}
    for a, b in [(1, 2), (3, 4), (5, 6), (7, 1), (2, 2), (9, 9), (8, 3)]
]
TASK = """
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
output_type: multiple_choice
test_split: test
doc_to_text: question
doc_to_choice: options
doc_to_target: right
metric_list: [{metric: acc}, {metric: acc_norm}, {metric: f1}]
metadata: {version: 2.5}
"""
WRITES = """
task: writes
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
output_type: generate_until
test_split: test
doc_to_text: question
doc_to_target: "{{options[0]}}"
generation_kwargs: {until: ["\\n"], do_sample: false, max_gen_toks: 64}
metric_list: [{metric: exact_match}]
metadata: {version: 1}
"""
GROUP = """
group: arithmetic_of_mine
task: [sums]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
metadata: {version: 3}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of the user's own tasks, with their data as JSON lines."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "sums.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (folder / "sums.yaml").write_text(TASK.replace("FILE", str(folder / "sums.jsonl")))
    (folder / "writes.yaml").write_text(WRITES.replace("FILE", str(folder / "sums.jsonl")))
    (folder / "group.yaml").write_text(GROUP)
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def evaluate(model, tokenizer, names, config, reporter):
    """Return the results of all that ``names`` stand for."""
    results = {}
    for task in load_tasks(names, config).values():
        results |= evaluate_task(model, tokenizer, task, config, reporter)
    return results


def log_likelihood(model, tokenizer, question, answer, delimiter=" "):
    """Return the summed log-likelihood of " answer" after the question, from plain transformers."""
    known = tokenizer(question)["input_ids"]
    whole = tokenizer(f"{question}{delimiter}{answer}")["input_ids"]
    with torch.no_grad():
        scores = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(scores[i - 1, whole[i]].item() for i in range(len(known), len(whole)))


def test_a_task_of_ones_own_is_scored_as_plain_transformers_would(
    folder, random_llama, tokenizer, recorder, capfd
):
    model = random_llama().train()
    config = EvalConfig(task_folder=str(folder), batch_size=4)
    found = evaluate(model, tokenizer, ["sums"], config, recorder)["sums"]

    likelihoods = [
        [log_likelihood(model.eval(), tokenizer, row["question"], o) for o in row["options"]]
        for row in ROWS
    ]
    normalised = [
        [value / len(option) for value, option in zip(values, row["options"], strict=True)]
        for values, row in zip(likelihoods, ROWS, strict=True)
    ]
    assert found.metrics["acc"] == sum(v[0] == max(v) for v in likelihoods) / len(ROWS)
    assert found.metrics["acc_norm"] == sum(v[0] == max(v) for v in normalised) / len(ROWS)
    assert {"acc_stderr", "acc_norm_stderr", "f1", "f1_stderr"} <= set(found.metrics)
    assert (found.samples, found.version, found.num_fewshot) == (7, "2.5", 0)
    assert recorder.bars == [("sums", 21, 21)]
    assert recorder.warnings == []
    assert "".join(capfd.readouterr()) == ""


ROLLING = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity}]
"""
GENERATION = """
output_type: generate_until
doc_to_text: question
doc_to_target: "{{options[0]}}"
generation_kwargs: {max_gen_toks: 3, until: ["x"]}
metric_list: [{metric: exact_match}]
"""


@pytest.mark.parametrize(
    ("kind", "metric"), [(ROLLING, "word_perplexity"), (GENERATION, "exact_match")]
)
def test_texts_and_generations_are_scored_too(
    folder, tmp_path, random_llama, tokenizer, recorder, capfd, kind, metric
):
    data = TASK.partition("output_type")[0].replace("FILE", str(folder / "sums.jsonl"))
    (tmp_path / "sums.yaml").write_text(f"{data}test_split: test{kind}")
    config = EvalConfig(task_folder=str(tmp_path))
    found = evaluate(random_llama(), tokenizer, ["sums"], config, recorder)
    assert found["sums"].metrics[metric] >= 0
    assert recorder.bars == [("sums", 7, 7)]
    assert "".join(capfd.readouterr()) == ""


def test_limit_takes_the_first_questions(folder, random_llama, tokenizer):
    config = EvalConfig(task_folder=str(folder), limit=3)
    assert evaluate(random_llama(), tokenizer, ["sums"], config, Silent())["sums"].samples == 3


def test_examples_are_shown_when_asked_for(folder, random_llama, tokenizer):
    config = EvalConfig(task_folder=str(folder), num_fewshot=2)
    model = random_llama()
    first = evaluate(model, tokenizer, ["sums"], config, Silent())
    assert first["sums"].num_fewshot == 2
    assert first == evaluate(model, tokenizer, ["sums"], config, Silent())


def test_a_task_that_was_scored_is_scored_the_same_again(folder, random_llama, tokenizer):
    config = EvalConfig(task_folder=str(folder), num_fewshot=2)
    (task,) = load_tasks(["sums"], config).values()
    first, second = (
        evaluate_task(random_llama(), tokenizer, task, config, Silent()) for _ in range(2)
    )
    assert first == second  # with the same examples shown


@pytest.mark.parametrize(
    ("own", "name", "asked", "shown"),
    [
        (None, "sums", None, 0),
        (None, "mmlu", None, 5),  # as published
        (3, "mmlu", None, 3),
        (3, "sums", 1, 1),
        (None, "mmlu", 0, 0),
        (0, "mmlu", 4, 0),  # it has none to show
    ],
)
def test_examples_are_the_tasks_own_number_or_the_suites_unless_asked_for(own, name, asked, shown):
    assert shots_of(TaskConfig(num_fewshot=own), name, asked) == shown


CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"


def test_a_chat_template_puts_each_question_as_the_user_does(folder, random_llama, tokenizer):
    talking = copy.deepcopy(tokenizer)
    talking.chat_template = CHAT + "{% if add_generation_prompt %}<assistant>{% endif %}"
    model = random_llama()
    config = EvalConfig(task_folder=str(folder), chat_template=True)
    found = evaluate(model, talking, ["sums"], config, Silent())["sums"]
    likelihoods = [
        [
            log_likelihood(model, tokenizer, f"<user>{row['question']}\n<assistant>", o, "")
            for o in row["options"]
        ]
        for row in ROWS
    ]
    assert found.metrics["acc"] == sum(v[0] == max(v) for v in likelihoods) / len(ROWS)
    assert found.chat_template
    plain = evaluate(model, talking, ["sums"], EvalConfig(task_folder=str(folder)), Silent())
    assert not plain["sums"].chat_template
    assert plain["sums"].data == found.data


def test_a_tokenizer_without_a_chat_template_is_an_error(folder, random_llama, tokenizer):
    config = EvalConfig(task_folder=str(folder), chat_template=True)
    with pytest.raises(ConfigError, match="the tokenizer of this model has no chat template"):
        evaluate(random_llama(), tokenizer, ["sums"], config, Silent())


@pytest.mark.parametrize("training", [True, False])
def test_model_and_tokenizer_are_left_as_they_were(folder, random_llama, tokenizer, training):
    model = random_llama().train(training)
    pad, tokenizer.pad_token = tokenizer.pad_token, None
    try:
        evaluate(model, tokenizer, ["sums"], EvalConfig(task_folder=str(folder)), Silent())
        assert tokenizer.pad_token is None
    finally:
        tokenizer.pad_token = pad
    assert model.training is training


def test_a_context_that_is_cut_is_told_once(folder, random_llama, tokenizer, recorder, capfd):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = 6
    config = EvalConfig(task_folder=str(folder))
    evaluate(random_llama(context=6), tokenizer, ["sums"], config, recorder)
    assert len(recorder.warnings) == 1
    assert "".join(capfd.readouterr()) == ""
    assert "texts are longer than the model's context of 6 tokens" in recorder.warnings[0]


def test_an_answer_longer_than_the_context_is_an_error(folder, random_llama, tokenizer):
    config = EvalConfig(task_folder=str(folder))
    with pytest.raises(DataError, match=r"task sums has an answer of \d tokens.* model is 2"):
        evaluate(random_llama(context=2), tokenizer, ["sums"], config, Silent())


def test_nan_is_an_error_and_not_a_score(folder, random_llama, tokenizer):
    model = random_llama()
    with torch.no_grad():
        model.lm_head.weight[5] = torch.nan
    with pytest.raises(NumericalError, match="task sums: the model computes NaN"):
        evaluate(model, tokenizer, ["sums"], EvalConfig(task_folder=str(folder)), Silent())


@pytest.mark.slow
def test_the_embedded_model_knows_the_next_line_better_than_chance(
    embedded_model, tokenizer, recorder, capfd
):
    config = EvalConfig(limit=80)
    found = evaluate(embedded_model, tokenizer, ["next-line"], config, recorder)
    metrics = found["next-line"].metrics
    assert metrics["acc"] > 0.3
    assert metrics["acc_norm"] > 0.4
    assert metrics["acc_norm_stderr"] == pytest.approx(
        (metrics["acc_norm"] * (1 - metrics["acc_norm"]) / 79) ** 0.5
    )
    assert (found["next-line"].samples, found["next-line"].num_fewshot) == (80, 0)
    assert recorder.bars == [("next-line", 320, 320)]
    assert "".join(capfd.readouterr()) == ""


def test_next_line_is_the_same_each_time(random_llama, tokenizer):
    model, config = random_llama(), EvalConfig(limit=20)
    first = evaluate(model, tokenizer, ["next-line"], config, Silent())
    assert first == evaluate(model, tokenizer, ["next-line"], config, Silent())


@pytest.mark.slow
def test_a_group_gives_its_own_result_and_those_of_its_members(folder, random_llama, tokenizer):
    config = EvalConfig(task_folder=str(folder))
    found = evaluate(random_llama(), tokenizer, ["arithmetic_of_mine"], config, Silent())
    assert set(found) == {"arithmetic_of_mine", "sums"}
    assert found["arithmetic_of_mine"].metrics["acc"] == found["sums"].metrics["acc"]
    assert (found["arithmetic_of_mine"].samples, found["arithmetic_of_mine"].version) == (7, "3")
    assert (found["arithmetic_of_mine"].group, found["sums"].group) == (None, "arithmetic_of_mine")


@pytest.mark.slow
def test_an_unknown_task_is_an_error_with_the_nearest_name(folder):
    with pytest.raises(
        ConfigError, match=r"'arc_eassy', an unknown task\. Did you mean 'arc_easy'"
    ):
        load_tasks(["arc_eassy"], EvalConfig())
    with pytest.raises(ConfigError, match=r"sums, writes\)\. .*lm-eval ls"):
        load_tasks(["sums", "8" * 20], EvalConfig(task_folder=str(folder)))


@pytest.mark.slow
def test_every_task_of_the_suites_is_known_to_the_harness():
    find_tasks(expand_tasks(["zeroshot", "mmlu", "next-line"]), None)


def test_a_task_folder_that_is_none_is_an_error(tmp_path):
    with pytest.raises(
        ConfigError, match=r"eval.task_folder is '.*nowhere', which is not a folder"
    ):
        load_tasks(["mine"], EvalConfig(task_folder=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("question", "'{{quest}}'"), "task sums cannot be set up: 'quest' is undefined"),
        (("multiple_choice", "guess"), "Got invalid output_type 'guess'"),
        (("test_split: test", "test_split: exam"), "has no split 'exam', only test"),
        (("sums.jsonl", "gone.jsonl"), "task sums: data set json cannot be read: .*gone.jsonl"),
        (("dataset_path: json", ""), "task sums has no dataset_path"),
        (("metadata:", "unsafe_code: true\nmetadata:"), "task sums runs code"),
    ],
)
def test_a_mistake_in_a_task_of_ones_own_is_one_line(folder, tmp_path, change, message):
    text = TASK.replace("FILE", str(folder / "sums.jsonl")).replace(*change)
    (tmp_path / "sums.yaml").write_text(text)
    config = EvalConfig(task_folder=str(tmp_path))
    with pytest.raises((ConfigError, DataError), match=message) as error:
        evaluate(torch.nn.Identity(), None, ["sums"], config, Silent())
    assert "\n" not in str(error.value)


def test_the_suite_is_seven_tasks_each_named_once():
    assert expand_tasks(["rte", "zeroshot", "next-line", "rte"]) == [
        "rte",
        *(name for name in ZEROSHOT if name != "rte"),
        "next-line",
    ]
    assert len(ZEROSHOT) == 7


def test_perplexity_is_not_a_task():
    with pytest.raises(ConfigError, match="perplexity is not a task"):
        expand_tasks(["perplexity", "rte"])


def test_the_mean_of_the_suite_is_that_of_acc_over_all_seven():
    metrics = {
        name: {"acc": number / 10, "acc_stderr": 0.07, "acc_norm": 1.0}
        for number, name in enumerate(ZEROSHOT)
    }
    mean = {"acc": 0.3, "acc_stderr": 0.07 / 7**0.5}  # of seven independent ones
    assert zeroshot_mean(metrics) == pytest.approx(mean)
    del metrics["rte"]
    assert zeroshot_mean(metrics) is None


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtraError, match=r'pip install "spp-cli\[eval\]"'):
        load_tasks(["rte"], EvalConfig())


def test_the_version_of_the_harness_is_known():
    assert harness_version().count(".") >= 1


CHAT = """{% for m in messages %}<|user|>{{ m.content }}
{% endfor %}"""


def chatting(tokenizer, template):
    """Return the tokenizer with a template, whose marks have no embeddings, as it happens."""
    other = copy.deepcopy(tokenizer)
    other.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    other.chat_template = template
    return other


@pytest.mark.parametrize("name", ["sums", "writes"])
def test_a_token_without_an_embedding_is_named_with_its_question(
    name, folder, random_llama, tokenizer
):
    config = EvalConfig(task_folder=str(folder), chat_template=True, limit=3)
    says = rf"task {name}, question 1: '<\|user\|>' is token 4096, and the model has embeddings"
    with pytest.raises(DataError, match=says):
        evaluate(random_llama(), chatting(tokenizer, CHAT), [name], config, Silent())


def test_a_template_that_fails_names_the_question(folder, random_llama, tokenizer):
    config = EvalConfig(task_folder=str(folder), chat_template=True, limit=3)
    fails = "{{ messages[0].content + 1 }}"
    with pytest.raises(DataError, match=r"task sums, the question '1 \+ 2 =': refused by the chat"):
        evaluate(random_llama(), chatting(tokenizer, fails), ["sums"], config, Silent())


def test_answers_longer_than_the_context_are_refused(folder, random_llama, tokenizer):
    config = EvalConfig(task_folder=str(folder), limit=3)
    says = r"task writes lets the model write 64 tokens, and the context of this model is 64\."
    with pytest.raises(DataError, match=says):
        evaluate(random_llama(context=64), tokenizer, ["writes"], config, Silent())
    found = evaluate(random_llama(context=96), tokenizer, ["writes"], config, Silent())
    assert found["writes"].samples == 3


def test_a_padding_token_without_an_embedding_does_no_harm(folder, random_llama, tokenizer):
    other = copy.deepcopy(tokenizer)
    other.add_special_tokens({"pad_token": "<padding>"})
    assert other.pad_token_id == 4096
    config = EvalConfig(task_folder=str(folder), limit=3)
    found = [
        evaluate(random_llama(), each, ["writes", "sums"], config, Silent())
        for each in (tokenizer, other)
    ]
    assert found[0] == found[1]
