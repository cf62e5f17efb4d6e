"""Perplexity: its value against plain transformers and against what theory says, and its errors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spp_cli.errors import DataError, ModelError, NumericalError
from spp_cli.evaluation import perplexity as module
from spp_cli.evaluation.perplexity import perplexity
from spp_cli.models import cross_entropy
from spp_cli.progress import Silent


def ids(chunks, length, vocab_size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (chunks, length), generator=generator)


@settings(max_examples=20, deadline=None)
@given(
    chunks=st.integers(1, 5),
    length=st.integers(2, 40),
    vocab_size=st.integers(2, 50),
    batch_size=st.integers(1, 6),
)
def test_a_uniform_model_has_its_vocabulary_as_perplexity(
    random_llama, chunks, length, vocab_size, batch_size
):
    model = random_llama(vocab_size)
    torch.nn.init.zeros_(model.lm_head.weight)
    found = perplexity(
        model, ids(chunks, length, vocab_size), batch_size=batch_size, reporter=Silent()
    )
    assert found.perplexity == pytest.approx(vocab_size, rel=1e-6)
    assert found.tokens == chunks * (length - 1)
    assert found.length == length


@pytest.mark.parametrize("length", [2, 100, 257, 300])
def test_it_is_the_mean_of_the_losses_of_plain_transformers(random_llama, length):
    model, tokens = random_llama(100), ids(3, length, 100)
    with torch.no_grad():
        losses = [model(input_ids=row[None], labels=row[None]).loss.item() for row in tokens]
    found = perplexity(model, tokens, batch_size=2, reporter=Silent())
    assert found.nats == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(found.nats))


def test_what_a_token_predicts_is_the_token_after_it(random_llama):
    # A model whose blocks do nothing expects each token again: right on "aaaa", wrong on "abab".
    model = random_llama(8)
    model.lm_head.weight = torch.nn.Parameter(model.model.embed_tokens.weight * 50)
    for block in model.model.layers:
        torch.nn.init.zeros_(block.self_attn.o_proj.weight)
        torch.nn.init.zeros_(block.mlp.down_proj.weight)
    same, changing = torch.tensor([[3, 3, 3, 3]]), torch.tensor([[3, 5, 3, 5]])
    assert perplexity(model, same, batch_size=1, reporter=Silent()).perplexity < 1.01
    assert perplexity(model, changing, batch_size=1, reporter=Silent()).perplexity > 100


def test_neither_batches_nor_the_room_for_logits_change_it(random_llama, monkeypatch):
    model, tokens = random_llama(60), ids(7, 33, 60)
    whole = perplexity(model, tokens, batch_size=7, reporter=Silent())
    assert perplexity(model, tokens, batch_size=3, reporter=Silent()).nats == pytest.approx(
        whole.nats, rel=1e-6
    )
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", 1)
    monkeypatch.setattr(cross_entropy, "_TOKENS_AT_ONCE", 5)
    assert perplexity(model, tokens, batch_size=7, reporter=Silent()).nats == pytest.approx(
        whole.nats, rel=1e-6
    )


def test_the_loss_is_float32_when_the_model_is_bfloat16(random_llama):
    model, tokens = random_llama(100).bfloat16(), ids(2, 50, 100)
    with torch.no_grad():
        scores = model(input_ids=tokens).logits[:, :-1].double().log_softmax(-1)
    exact = -scores.gather(-1, tokens[:, 1:, None]).mean().item()
    found = perplexity(model, tokens, batch_size=2, reporter=Silent())
    assert found.nats == pytest.approx(exact, rel=1e-6)


def test_progress_counts_chunks_and_names_the_length(random_llama, recorder):
    perplexity(random_llama(10), ids(5, 16, 10), batch_size=2, reporter=recorder)
    assert recorder.bars == [("perplexity@16", 5, 5)]


@pytest.mark.parametrize("training", [True, False])
def test_a_model_in_training_mode_is_measured_without_dropout_and_left_as_it_was(
    random_llama, training
):
    model = random_llama(10)
    expected = perplexity(model, ids(1, 16, 10), batch_size=1, reporter=Silent())
    model.model.layers[0].self_attn.attention_dropout = 0.9
    model.train(training)
    assert perplexity(model, ids(1, 16, 10), batch_size=1, reporter=Silent()) == expected
    assert model.training is training


def test_nan_is_an_error_that_names_the_chunk(random_llama):
    model, tokens = random_llama(10), ids(5, 8, 9)
    tokens[3, 2] = 9
    with torch.no_grad():
        model.model.embed_tokens.weight[9] = torch.nan
    with pytest.raises(NumericalError, match=r"chunk 4 of 5 is nan.*--device cpu"):
        perplexity(model, tokens, batch_size=2, reporter=Silent())


def test_a_loss_too_large_for_exp_is_an_infinite_perplexity(random_llama):
    model = random_llama(10)
    with torch.no_grad():
        model.lm_head.weight.mul_(1e6)
    found = perplexity(model, ids(2, 8, 10), batch_size=2, reporter=Silent())
    assert found.nats > 709
    assert found.perplexity == math.inf


@pytest.mark.parametrize("shape", [(0, 16), (3, 1)])
def test_no_token_to_predict_is_an_error(random_llama, shape):
    with pytest.raises(DataError, match="at least 2 tokens"):
        perplexity(random_llama(10), ids(*shape, 10), batch_size=1, reporter=Silent())


def test_a_tokenizer_of_another_model_is_an_error(random_llama):
    with pytest.raises(ModelError, match=r"token id 10 is outside the model's vocabulary of 10"):
        perplexity(random_llama(10), torch.tensor([[1, 10]]), batch_size=1, reporter=Silent())
