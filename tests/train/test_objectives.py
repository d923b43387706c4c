"""Facts about the loss: it equals that of transformers, pieces add up to the whole, only labels cost head work."""

from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from catena.models.chat import Encoded
from catena.models.presets import build
from catena.train import objectives
from catena.train.batches import Batch, pad_rows
from catena.train.objectives import next_token_loss
from catena.train.parallel.strategy import Strategy
from catena.train.settings import TrainConfig


@pytest.fixture
def model() -> Any:
    return build("llama-nano", 300, 0).double()


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length, learnt in ((9, 3), (12, 7), (5, 1), (11, 4)):
        ids = torch.randint(5, 300, (length,), generator=generator).tolist()
        rows.append(Encoded(ids, [False] * (length - learnt) + [True] * learnt))
    return pad_rows(rows, 0)


def backward(model: Any, batch: Batch, micro_batch_size: int = 0) -> float:
    strategy = Strategy(TrainConfig(), torch.device("cpu"))
    return strategy.backward(model, batch, next_token_loss, micro_batch_size)


def gradients(model: Any) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_loss_equals_that_of_transformers_with_masked_padding(model: Any, batch: Batch) -> None:
    ours = objectives.next_token_loss(model, batch) / batch.learnt
    mask = torch.arange(batch.inputs.shape[1])[None] < torch.tensor([8, 11, 4, 10])[:, None]
    theirs = model(input_ids=batch.inputs, attention_mask=mask.long(), shift_labels=batch.labels, labels=batch.labels)
    assert ours.item() == pytest.approx(theirs.loss.item(), rel=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_accumulated_gradient_equals_that_of_one_big_batch(batch: Batch, rows: int) -> None:
    # GPT-2 computes in float64 throughout; the norms of Llama are float32 whatever the model is.
    config = GPT2Config(vocab_size=300, n_positions=64, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0, embd_pdrop=0)
    model = GPT2LMHeadModel(config).double()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    whole = backward(model, batch)
    expected = gradients(model)
    model.zero_grad()
    assert backward(model, batch, micro_batch_size=rows) == pytest.approx(whole, rel=1e-14)
    for one, other in zip(gradients(model), expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-14)


def test_large_vocabularies_go_piece_by_piece_to_the_same_gradient(
    model: Any, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.float()
    whole = backward(model, batch)
    expected = gradients(model)
    model.zero_grad()
    monkeypatch.setattr(objectives, "CHUNK_ABOVE", 1)
    assert backward(model, batch) == pytest.approx(whole, rel=1e-5)
    for one, other in zip(gradients(model), expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-6)


def test_models_with_scaled_heads_compute_their_own_logits(batch: Batch) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        final_logit_softcapping=0.5,
        attn_implementation="eager",
        pad_token_id=0,
    )
    model: Any = Gemma2ForCausalLM(config)
    ours = objectives.next_token_loss(model, batch) / batch.learnt
    theirs = model(input_ids=batch.inputs, shift_labels=batch.labels, labels=batch.labels)
    assert ours.item() == pytest.approx(theirs.loss.item(), rel=1e-5)
