"""Facts about tasks: masks are the seed's and the step's, losses are those of transformers, pieces add up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from catena.models.presets import build
from catena.train.batches import IGNORED, Batch
from catena.train.parallel.strategy import Objective, Strategy
from catena.train.settings import TrainConfig
from catena.train.tasks import (
    LabelledRows,
    LengthGroups,
    Mask,
    MaskedRows,
    attention_of,
    label_objective,
    laid,
    masked_token_loss,
    target_text_loss,
)
from catena.train.tokens import Tokens, make_shard

MASK, PAD, VOCABULARY = 4, 0, 300
ORDINARY = np.arange(5, VOCABULARY)
LENGTHS = [3, 25, 8, 8, 60, 12, 5, 30, 17, 9, 40, 3]
TINY: dict[str, Any] = {
    **{"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "max_position_embeddings": 80, "pad_token_id": PAD},
}


def masked_rows(batch_size: int = 4, seed: int = 7, copies: int = 1) -> MaskedRows:
    chance = np.random.default_rng(0)
    ids = [[2, *chance.integers(5, VOCABULARY, length).tolist(), 1] for length in LENGTHS * copies]
    rows = [(row, [False, *[True] * (len(row) - 2), False]) for row in ids]
    tokens = Tokens([make_shard(rows, range(len(rows)))])
    return MaskedRows(tokens, LengthGroups(tokens.lengths, batch_size, seed), Mask(MASK, PAD, ORDINARY))


def test_every_row_comes_once_in_each_epoch_in_another_order() -> None:
    groups = LengthGroups(LENGTHS, 4, 7)
    assert groups.steps(1.0) == 3
    drawn = [row for step in range(24) for row in groups.rows(step)]
    assert sorted(drawn) == sorted(list(range(12)) * 8)
    assert groups.rows(5) == LengthGroups(LENGTHS, 4, 7).rows(5)
    assert [groups.rows(step) for step in range(8)] != [LengthGroups(LENGTHS, 4, 8).rows(step) for step in range(8)]


def test_masks_are_a_pure_function_of_seed_and_step() -> None:
    one, again = masked_rows().batch(11), masked_rows().batch(11)
    assert torch.equal(one.inputs, again.inputs)
    assert torch.equal(one.labels, again.labels)
    assert not torch.equal(one.labels, masked_rows(seed=8).batch(11).labels)
    fixed = masked_rows().in_order(2)
    assert [batch.inputs.tolist() for batch in fixed] == [batch.inputs.tolist() for batch in masked_rows().in_order(2)]


def test_masking_takes_15_percent_and_80_10_10_of_them() -> None:
    rows = masked_rows(batch_size=96, copies=40)
    chosen = kept = masked = real = others = 0
    for step in range(20):
        batch = rows.batch(step)
        places = batch.labels.ne(IGNORED)
        assert (places.sum(1) >= 1).all()
        assert not batch.labels[places].lt(5).any()  # no special token is foretold
        chosen += int(places.sum())
        kept += int((batch.inputs == batch.labels)[places].sum())
        masked += int(batch.inputs[places].eq(MASK).sum())
        others += int(batch.inputs[places].lt(5).sum()) - int(batch.inputs[places].eq(MASK).sum())
        real += batch.real - 2 * len(batch.inputs)
    assert chosen / real == pytest.approx(0.15, abs=0.01)
    assert masked / chosen == pytest.approx(0.8, abs=0.02)
    assert kept / chosen == pytest.approx(0.1 + 0.1 / len(ORDINARY), abs=0.015)
    assert others == 0


def test_attention_is_on_what_is_real() -> None:
    batch = laid([[7, 8, 9], [7]], torch.tensor([0, 1]), PAD)
    assert attention_of(batch).tolist() == [[1, 1, 1], [1, 0, 0]]
    assert (batch.real, batch.learnt) == (4, 2)


@pytest.mark.parametrize("family", ["Bert", "Roberta", "ModernBert", "DistilBert", "Electra"])
def test_masked_loss_is_that_of_transformers(family: str) -> None:
    small = {"vocab_size": VOCABULARY, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "pad_token_id": PAD}
    config = getattr(transformers, f"{family}Config")(**(small if family == "DistilBert" else TINY))
    model = transformers.AutoModelForMaskedLM.from_config(config).double().eval()
    batch = masked_rows().batch(0)
    theirs = model(input_ids=batch.inputs, attention_mask=attention_of(batch), labels=batch.labels).loss
    assert masked_token_loss(model, batch).item() / batch.learnt == pytest.approx(theirs.item(), rel=1e-5)


def test_target_loss_is_that_of_transformers() -> None:
    model = build("t5-nano", VOCABULARY, 0).double().eval()
    batch = pairs().batch(0)
    theirs = model(input_ids=batch.inputs, attention_mask=attention_of(batch), labels=batch.labels).loss
    assert target_text_loss(model, batch).item() / batch.learnt == pytest.approx(theirs.item(), rel=1e-5)


def pairs() -> LabelledRows:
    sources = [list(range(5, 5 + length)) for length in LENGTHS]
    targets = [list(range(9, 9 + 70 - length)) for length in LENGTHS]
    return LabelledRows(sources, targets, LengthGroups(LENGTHS, 6, 1), PAD)


def labelled(per_token: bool) -> LabelledRows:
    rows = [list(range(5, 5 + length)) for length in LENGTHS]
    labels: list[Any] = [
        [token % 3 if token % 4 else IGNORED for token in row] if per_token else row[-1] % 3 for row in rows
    ]
    return LabelledRows(rows, labels, LengthGroups(LENGTHS, 6, 1), PAD)


def classifier(head: str) -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(**TINY, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return getattr(transformers, f"BertFor{head}Classification")(config).double()


@pytest.mark.parametrize("head", ["Sequence", "Token"])
def test_label_loss_is_that_of_transformers_and_weights_count(head: str) -> None:
    model, batch = classifier(head).eval(), labelled(head == "Token").batch(0)
    told = model(input_ids=batch.inputs, attention_mask=attention_of(batch), labels=batch.labels)
    assert label_objective()(model, batch).item() / batch.learnt == pytest.approx(told.loss.item(), rel=1e-5)
    flat, labels = told.logits.float().flatten(0, -2), batch.labels.flatten()
    by_label = nn.functional.cross_entropy(flat, labels, ignore_index=IGNORED, reduction="none")
    expected = by_label[labels.eq(0)].sum() * 2 + by_label[labels.eq(2)].sum() * 0.5
    assert label_objective((2.0, 0.0, 0.5))(model, batch).item() == pytest.approx(expected.item(), rel=1e-5)


CASES: dict[str, Any] = {
    "masked": (lambda: build("bert-nano", VOCABULARY, 0), masked_rows, masked_token_loss),
    "pairs": (lambda: build("t5-nano", VOCABULARY, 0), pairs, target_text_loss),
    "sequence": (lambda: classifier("Sequence"), lambda: labelled(False), label_objective((1.0, 2.0, 3.0))),
    "token": (lambda: classifier("Token"), lambda: labelled(True), label_objective()),
}


def gradient(model: Any, batches: list[Batch], whole: int, objective: Objective) -> Tensor:
    model.zero_grad()
    for batch in batches:
        (objective(model, batch) / whole).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


@pytest.mark.parametrize("task", CASES)
def test_pieces_and_shares_add_up_to_the_gradient_of_the_whole_batch(task: str) -> None:
    make, rows, objective = CASES[task]
    model, batch = make().double().train(), rows().batch(1)
    whole = gradient(model, [batch], batch.learnt, objective)
    for parts in (batch.pieces(1), batch.pieces(4), [batch.share(rank, 3) for rank in range(3)]):
        assert sum(part.learnt for part in parts) == batch.learnt
        assert torch.allclose(gradient(model, parts, batch.learnt, objective), whole, atol=1e-6)


@pytest.mark.parametrize("task", CASES)
def test_a_process_without_rows_adds_nothing(task: str) -> None:
    make, rows, objective = CASES[task]
    share = rows().batch(0).share(20, 32)
    assert share.learnt == 0
    assert objective(make().double(), share).item() == 0.0


@pytest.mark.parametrize("task", CASES)
def test_the_loops_strategy_takes_every_task(task: str, tmp_path: Path) -> None:
    make, rows, objective = CASES[task]
    strategy = Strategy(TrainConfig(), torch.device("cpu"))
    model = strategy.place(make())
    batch = rows().batch(0)
    once = strategy.backward(model, batch, objective, 0)
    assert once == pytest.approx(strategy.backward(model, batch, objective, 2), rel=1e-5)
    assert strategy.measure(model, [batch], objective) == pytest.approx(once, rel=1e-5)
