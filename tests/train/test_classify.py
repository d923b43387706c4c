"""Facts about the stages for encoders and encoder-decoders: what comes out has learnt, and loads in transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

from catena.core.errors import DataError, UsageError
from catena.core.sample import Sample
from catena.core.types import DatasetVersion, ModelVersion
from catena.hub.store import Store
from catena.models import checkpoint
from catena.models.adapters import AdapterConfig
from catena.train.classify import ClassifyConfig, classify
from catena.train.masked import MaskedConfig, masked
from catena.train.pretrain import PretrainConfig, pretrain
from catena.train.seq2seq import Seq2SeqConfig, seq2seq
from catena.train.tokenizer import TokenizerConfig, tokenizer
from tests.train.conftest import WORDS, Recorded

MakeContext = Callable[[str], Recorded]
SMALL: dict[str, Any] = {"batch_size": 8, "warmup_steps": 2, "log_every": 5}
FAST: dict[str, Any] = {**SMALL, "learning_rate": 5e-3}
CITIES = ("Paris", "Rome", "北京", "Kyoto")


def examples(store: Store, rows: list[tuple[str, str, str]]) -> DatasetVersion:
    """Store examples given as (split, input, output)."""
    with store.new_dataset("example") as out:
        for number, (split, text, label) in enumerate(rows):
            out.add(Sample(f"e{number}", {"input": text, "output": label}, split=split))
        return out.commit()


def question(number: int) -> tuple[str, str]:
    word = WORDS[number % 8]
    return [(f"please explain {word}, number {number}", "explain"), (f"把 {word} 翻译成中文 {number}", "翻译")][
        number % 2
    ]


@pytest.fixture
def intents(store: Store) -> DatasetVersion:
    rows = [("train" if number < 40 else "validation", *question(number)) for number in range(56)]
    return examples(store, rows)


@pytest.fixture
def cities(store: Store) -> DatasetVersion:
    """Half with a tag for each word, half with spans: both are one set of labels."""
    rows = []
    for number in range(48):
        city = CITIES[number % 4]
        text = f"fly to {city} on day {number}"
        spans = f'[{{"start": 7, "end": {7 + len(city)}, "label": "LOC"}}]'
        rows.append(("train", text, spans if number % 2 else "O O B-LOC O O O"))
    return examples(store, rows)


@pytest.fixture
def words(recorded: MakeContext, documents: DatasetVersion, conversations: DatasetVersion) -> ModelVersion:
    config = TokenizerConfig(vocab_size=400)
    return tokenizer(recorded("tokenizer").context, config, source=documents, conversations=conversations)


@pytest.fixture
def encoder(recorded: MakeContext, words: ModelVersion, documents: DatasetVersion) -> ModelVersion:
    config = MaskedConfig(preset="modernbert-nano", context=64, sequence_length=48, steps=2, **SMALL)
    return masked(recorded("encoder").context, config, tokenizer=words, data=documents)


def test_masked_training_makes_an_encoder_that_transformers_loads(
    recorded: MakeContext, store: Store, words: ModelVersion, documents: DatasetVersion
) -> None:
    made = recorded("masked")
    config = MaskedConfig(preset="bert-nano", sequence_length=48, steps=30, eval_batches=2, **FAST)
    trained = masked(made.context, config, tokenizer=words, data=documents)
    assert (trained.architecture, trained.context) == ("BertForMaskedLM", 128)
    losses = made.values("loss")
    assert losses[-1] < losses[0] - 0.3
    assert len(made.values("val_loss")) == 1
    folder = store.checkout(trained)
    loaded, marks = AutoModelForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert len(marks) == loaded.config.vocab_size
    ids = marks("alpha beta")["input_ids"]
    assert (ids[0], ids[-1]) == (marks.cls_token_id, marks.eos_token_id)
    assert marks.mask_token is not None
    further = masked(recorded("further").context, config.model_copy(update={"steps": 2}), base=trained, data=documents)
    assert further.parameters == trained.parameters


def test_a_killed_classifier_training_goes_on_to_the_same_bits(
    recorded: MakeContext, encoder: ModelVersion, intents: DatasetVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    from catena.train.tasks import LabelledRows

    config = ClassifyConfig(steps=12, dropout=0.2, checkpoint_seconds=0, **FAST)
    whole = classify(recorded("whole").context, config, base=encoder, data=intents)
    drawn = LabelledRows.batch

    def dies(rows: LabelledRows, step: int) -> Any:
        if step == 7:
            raise RuntimeError("killed")
        return drawn(rows, step)

    with monkeypatch.context() as patch:
        patch.setattr(LabelledRows, "batch", dies)
        with pytest.raises(RuntimeError, match="killed"):
            classify(recorded("killed").context, config, base=encoder, data=intents)
    again = recorded("killed")
    assert classify(again.context, config, base=encoder, data=intents).digest == whole.digest
    assert "going on" in again.said()


def test_a_classifier_learns_and_transformers_names_the_labels(
    recorded: MakeContext, store: Store, encoder: ModelVersion, intents: DatasetVersion
) -> None:
    made = recorded("classify")
    config = ClassifyConfig(epochs=6, class_weights="balanced", eval_batches=2, **FAST)
    trained = classify(made.context, config, base=encoder, data=intents)
    assert trained.architecture == "ModernBertForSequenceClassification"
    assert made.values("val_loss")[-1] < 0.3
    told = pipeline("text-classification", model=str(store.checkout(trained)), device="cpu")
    assert [answer["label"] for answer in told(["please explain beta", "把 beta 翻译成中文"])] == ["explain", "翻译"]
    further = classify(recorded("on").context, ClassifyConfig(steps=1, **SMALL), base=trained, data=intents)
    assert further.parameters == trained.parameters


def test_a_decoder_becomes_a_classifier_of_words(
    recorded: MakeContext, store: Store, words: ModelVersion, documents: DatasetVersion, cities: DatasetVersion
) -> None:
    start = PretrainConfig(preset="llama-nano", sequence_length=32, steps=1, **SMALL)
    base = pretrain(recorded("llama").context, start, tokenizer=words, data=documents)
    made = recorded("token")
    trained = classify(made.context, ClassifyConfig(head="token", steps=30, **FAST), base=base, data=cities)
    assert trained.architecture == "LlamaForTokenClassification"
    assert made.values("loss")[-1] < 0.2
    settings = checkpoint.read_config(store.checkout(trained))
    assert settings["id2label"] == {"0": "B-LOC", "1": "I-LOC", "2": "O"}


def test_an_adapter_of_a_classifier_holds_its_head(
    recorded: MakeContext, store: Store, encoder: ModelVersion, intents: DatasetVersion
) -> None:
    config = ClassifyConfig(steps=40, adapter=AdapterConfig(kind="lora", rank=4), **FAST)
    made = recorded("lora")
    store.index.add_artifact(encoder)  # as a run does: an adapter finds its base by its digest
    trained = classify(made.context, config, base=encoder, data=intents)
    assert (trained.form, trained.base) == ("adapter", encoder.digest)
    assert made.values("loss")[-1] < made.values("loss")[0] - 0.2
    model = checkpoint.load_model(store.checkout(trained))
    assert model.config.id2label == {0: "explain", 1: "翻译"}


def test_pairs_make_a_translator_that_transformers_loads(
    recorded: MakeContext, store: Store, words: ModelVersion
) -> None:
    rows = [("train", f"{name} {number}", f"{number} {name[::-1]}") for number in range(5) for name in WORDS]
    made = recorded("seq2seq")
    config = Seq2SeqConfig(preset="t5-nano", steps=30, sequence_length=32, **FAST)
    data = examples(store, rows)
    trained = seq2seq(made.context, config, tokenizer=words, data=data)
    assert trained.architecture == "T5ForConditionalGeneration"
    assert made.values("loss")[-1] < made.values("loss")[0] - 1
    folder = store.checkout(trained)
    loaded, marks = AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    assert marks("alpha")["input_ids"][-1] == marks.eos_token_id
    with torch.no_grad():
        written = loaded.generate(
            **marks("alpha 1", return_tensors="pt", return_token_type_ids=False), max_new_tokens=4
        )
    assert written.shape[1] == 5
    further = seq2seq(recorded("further").context, config.model_copy(update={"steps": 1}), base=trained, data=data)
    assert further.parameters == trained.parameters


def test_a_text_longer_than_the_context_is_cut_dropped_or_refused_and_told(
    recorded: MakeContext, store: Store, encoder: ModelVersion
) -> None:
    data = examples(store, [("train", "alpha " * 200, "a"), ("train", "beta", "b"), ("train", "gamma", "a")])
    for policy, counted in (("cut", "cut"), ("drop", "too_long")):
        made = recorded(policy)
        classify(made.context, ClassifyConfig(steps=1, overlong=policy, **SMALL), base=encoder, data=data)  # type: ignore[arg-type]
        assert made.values(counted) == [1]
        assert "1 of 3 examples" in made.said()
    with pytest.raises(DataError, match="the model takes 64"):
        classify(recorded("r").context, ClassifyConfig(steps=1, overlong="refuse", **SMALL), base=encoder, data=data)


@pytest.mark.parametrize(
    ("config", "rows", "message"),
    [
        ({}, [("train", "x", "a"), ("train", "y", " ")], "e1 has no label"),
        ({}, [("train", " \n", "a"), ("train", "y", "b")], "e0 has no text"),
        ({}, [("train", "x", "a"), ("train", "y", "a")], "one label only: a"),
        ({"labels": ("a", "b")}, [("train", "x", "a"), ("train", "y", "c")], "label 'c' of the sample e1 is none"),
        ({}, [("train", "x", "a"), ("train", "y", "b"), ("validation", "z", "B")], "label 'B' of the sample e2"),
        ({"class_weights": {"z": 2}}, [("train", "x", "a"), ("train", "y", "b")], "no label 'z'"),
        ({"head": "token"}, [("train", "x y", "O O"), ("train", "y", "O O")], "1 words and 2 tags"),
    ],
)
def test_bad_examples_are_refused_by_name(
    config: dict[str, Any],
    rows: list[tuple[str, str, str]],
    message: str,
    recorded: MakeContext,
    store: Store,
    encoder: ModelVersion,
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        classify(recorded("bad").context, ClassifyConfig(steps=1, **config), base=encoder, data=examples(store, rows))
    assert caught.value.hint


def test_what_makes_no_sense_is_refused(
    recorded: MakeContext, store: Store, words: ModelVersion, encoder: ModelVersion, documents: DatasetVersion
) -> None:
    context = recorded("x").context
    adapter = encoder.model_copy(update={"form": "adapter"})
    with pytest.raises(UsageError, match="only a full model"):
        classify(context, ClassifyConfig(steps=1), base=adapter, data=documents)
    with pytest.raises(UsageError, match="either a tokenizer"):
        masked(context, MaskedConfig(steps=1), data=documents)
    with pytest.raises(UsageError, match="a dataset of examples"):
        classify(context, ClassifyConfig(steps=1), base=encoder, data=documents)
    data = examples(store, [("train", "x", " ")])
    with pytest.raises(DataError, match="the output of the sample e0 is empty"):
        seq2seq(context, Seq2SeqConfig(preset="t5-nano", steps=1), tokenizer=words, data=data)
    with pytest.raises(ValidationError, match="is a decoder; this needs an encoder"):
        MaskedConfig(preset="llama-4m")
    with pytest.raises(ValidationError, match="longer than the model's context"):
        MaskedConfig(preset="bert-nano", sequence_length=200)
    with pytest.raises(ValidationError, match="not both"):
        ClassifyConfig(steps=1, epochs=1)
