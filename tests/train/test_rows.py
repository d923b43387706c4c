"""Bad rows for a training: the field, the sample or the row is named, what is known is told, and nothing is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from catena.core.errors import DataError
from catena.core.sample import Sample
from catena.core.types import DatasetVersion, ModelVersion
from catena.hub import datasets
from catena.hub.store import Store
from catena.train.classify import ClassifyConfig, classify
from catena.train.masked import MaskedConfig, masked
from catena.train.pretrain import PretrainConfig, pretrain
from catena.train.seq2seq import Seq2SeqConfig, seq2seq
from catena.train.sft import SftConfig, sft
from catena.train.tokenizer import TokenizerConfig, tokenizer
from catena.workspace import ModelHandle, Workspace
from tests.train.conftest import Recorded, conversation, document

MakeContext = Callable[[str], Recorded]


@pytest.fixture
def words(recorded: MakeContext, documents: DatasetVersion) -> ModelVersion:
    return tokenizer(recorded("tokenizer").context, TokenizerConfig(vocab_size=400), source=documents)


@pytest.fixture
def base(recorded: MakeContext, words: ModelVersion, documents: DatasetVersion) -> ModelVersion:
    config = PretrainConfig(preset="llama-nano", sequence_length=32, batch_size=4, steps=1, warmup_steps=1)
    return pretrain(recorded("base").context, config, tokenizer=words, data=documents)


def put_unchecked(store: Store, monkeypatch: pytest.MonkeyPatch, shape: Any, data: dict[str, Any]) -> DatasetVersion:
    """Store a sample as it could be stored before its fields were looked at."""
    with monkeypatch.context() as patched, store.new_dataset(shape) as writer:
        patched.setattr(datasets, "check_fields", lambda *_: None)
        writer.add(Sample(id="s1", data=data, split="train"))
        return writer.commit()


def test_stored_samples_that_lack_a_field_stop_a_training_by_name(
    store: Store, recorded: MakeContext, base: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = {"mesages": conversation(1, 0)}
    data = put_unchecked(store, monkeypatch, "conversation", turns)
    with pytest.raises(DataError, match="'messages' of the sample s1 is nothing, not a list"):
        sft(recorded("a").context, SftConfig(), base=base, data=data)
    data = put_unchecked(store, monkeypatch, "document", {"txt": "alpha"})
    with pytest.raises(DataError, match="'text' of the sample s1 is nothing, not text"):
        pretrain(recorded("b").context, PretrainConfig(sequence_length=32), base=base, data=data)
    data = put_unchecked(store, monkeypatch, "example", {"input": "alpha", "label": "yes"})
    with pytest.raises(DataError, match="'output' of the sample s1 is nothing, not text"):
        classify(recorded("c").context, ClassifyConfig(), base=base, data=data)


def test_rows_train_a_model_and_bad_ones_are_told_by_number(store: Store, base: ModelVersion) -> None:
    store.index.add_artifact(base)
    rows = [{"messages": conversation(number, 1), "metadata": {"topic": "letters"}} for number in range(8)]
    with Workspace(store) as workspace:
        handle = workspace.model(base.digest)
        tuned = handle.train(rows, batch_size=4, warmup_steps=1, name="tuned")
        assert isinstance(tuned, ModelHandle)
        shown = {node.facts.get("shape") for node in workspace.lineage("tuned", down=False).nodes}
        assert "conversation" in shown
        for bad, said, hint in (
            ({"mesages": conversation(1, 0)}, "row 2: there is no column 'mesages'", "Did you mean 'messages'?"),
            ({"messages": [{"role": "user", "text": "hi"}]}, "row 2: message 1 of it .* field 'text'", "role, content"),
            ({"metadata": {}}, "row 2: it has no field 'messages'", "A conversation has: messages"),
        ):
            with pytest.raises(DataError, match=said) as caught:
                handle.train([rows[0], bad])
            assert hint in caught.value.hint
        with pytest.raises(DataError, match=r"columns \(mesages\) are of no shape") as caught:
            handle.train([{"mesages": []}])
        assert "Did you mean 'messages'?" in caught.value.hint
        for none in ([], ["just a text"]):
            with pytest.raises(DataError, match="these are no rows"):
                handle.train(none)  # type: ignore[arg-type]


def test_a_role_and_a_key_that_are_nearly_right_are_told(store: Store, base: ModelVersion) -> None:
    store.index.add_artifact(base)
    rows = [{"messages": conversation(number, 1), "metadata": {"name": "alpha"}} for number in range(4)]
    with Workspace(store) as workspace:
        handle = workspace.model(base.digest)
        with pytest.raises(DataError, match="no conversation has 'nmae' in its metadata") as caught:
            handle.train(rows, take_turns="nmae")
        assert "Did you mean 'name'?" in caught.value.hint
        rows[3]["messages"][1]["role"] = "asistant"
        with pytest.raises(DataError, match="the role 'asistant' in the sample") as caught:
            handle.train(rows)
        assert caught.value.hint == "Did you mean 'assistant'? Roles are system, user, assistant."


def undivided(store: Store, shape: Any, rows: list[dict[str, Any]]) -> DatasetVersion:
    """A dataset as `catena data commit` leaves it: none of its rows has a split."""
    with store.new_dataset(shape) as writer:
        for number, data in enumerate(rows):
            writer.add(Sample(id=f"u{number}", data=data))
        return writer.commit()


@pytest.mark.parametrize("split", ["train", "all"])
def test_a_dataset_that_was_never_divided_is_trained_on_whole(
    store: Store, recorded: MakeContext, base: ModelVersion, split: str
) -> None:
    talks = undivided(store, "conversation", [{"messages": conversation(number, 1)} for number in range(12)])
    texts = undivided(store, "document", [{"text": document(number)} for number in range(12)])
    pairs = undivided(store, "example", [{"input": document(n), "output": "yes" if n % 2 else "no"} for n in range(12)])
    assert set(talks.splits) == {"all"}
    words = tokenizer(recorded("words").context, TokenizerConfig(vocab_size=400, split=split), source=texts)
    short: dict[str, Any] = {"split": split, "batch_size": 4, "warmup_steps": 1, "device": "cpu"}
    made = recorded("sft")
    sft(made.context, SftConfig(phases=[{"steps": 2}], **short), base=base, data=talks)
    assert any(event.get("message", "").startswith("12 conversations") for event in made.events)
    pretrain(recorded("more").context, PretrainConfig(steps=2, sequence_length=32, **short), base=base, data=texts)
    classify(recorded("labels").context, ClassifyConfig(epochs=1, **short), base=base, data=pairs)
    mask = MaskedConfig(preset="bert-nano", steps=2, sequence_length=32, **short)
    masked(recorded("masked").context, mask, tokenizer=words, data=texts)
    shape = Seq2SeqConfig(preset="t5-nano", steps=2, **short)
    seq2seq(recorded("pairs").context, shape, tokenizer=words, data=pairs)
    with pytest.raises(DataError, match="no samples in the split 'test'") as caught:
        pretrain(recorded("none").context, PretrainConfig(split="test", sequence_length=32), base=base, data=texts)
    assert caught.value.hint == "It holds: all (12). Set split to one of them, or divide it with data.split."
