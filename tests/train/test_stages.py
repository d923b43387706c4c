"""Facts about the stages: text to tokenizer to model to tuned model, each a folder that plain transformers loads."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from catena.core.errors import Cancelled, DataError, RecipeError, UsageError
from catena.core.sample import Sample
from catena.core.types import DatasetVersion, ModelVersion
from catena.hub.store import Store
from catena.models import checkpoint
from catena.models.adapters import AdapterConfig
from catena.models.chat import encode_conversations
from catena.train.artifacts import license_of
from catena.train.batches import PackedDocuments
from catena.train.curriculum import Phase
from catena.train.pretrain import PretrainConfig, pretrain, steps_of
from catena.train.sft import SftConfig, sft
from catena.train.tokenizer import TokenizerConfig, tokenizer
from catena.train.tokens import documents_in_memory
from catena.workspace import Workspace
from tests.train.conftest import Recorded, conversation

MakeContext = Callable[[str], Recorded]
PRETRAIN = PretrainConfig(preset="llama-nano", sequence_length=32, batch_size=8, steps=8, log_every=2, warmup_steps=2)
TUNE: dict[str, Any] = {"batch_size": 8, "learning_rate": 5e-3, "warmup_steps": 2, "log_every": 2}


@pytest.fixture
def words(recorded: MakeContext, documents: DatasetVersion, conversations: DatasetVersion) -> ModelVersion:
    config = TokenizerConfig(vocab_size=400)
    return tokenizer(recorded("tokenizer").context, config, source=documents, conversations=conversations)


@pytest.fixture
def base(recorded: MakeContext, words: ModelVersion, documents: DatasetVersion) -> ModelVersion:
    return pretrain(recorded("base").context, PRETRAIN, tokenizer=words, data=documents)


def test_tokenizer_stage_gives_the_same_artifact_twice(
    recorded: MakeContext, words: ModelVersion, documents: DatasetVersion, conversations: DatasetVersion
) -> None:
    again = tokenizer(
        recorded("again").context, TokenizerConfig(vocab_size=400), source=documents, conversations=conversations
    )
    assert (again.digest, again.form) == (words.digest, "tokenizer")


def test_tokenizer_reads_its_split_only(store: Store, recorded: MakeContext, documents: DatasetVersion) -> None:
    made = tokenizer(recorded("v").context, TokenizerConfig(vocab_size=500, split="validation"), source=documents)
    vocabulary = AutoTokenizer.from_pretrained(store.checkout(made)).get_vocab()
    assert not [token for token in vocabulary if "Page1" in token]
    with pytest.raises(DataError, match="no samples in the split 'test'"):
        tokenizer(recorded("w").context, TokenizerConfig(split="test"), source=documents)


def test_pretrained_folder_loads_in_transformers_with_equal_logits(store: Store, base: ModelVersion) -> None:
    folder = store.checkout(base)
    ours, words = checkpoint.load(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    prompt = AutoTokenizer.from_pretrained(folder)("Page 3. alpha", return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        assert torch.equal(ours(prompt.input_ids).logits, theirs(prompt.input_ids).logits)
    assert (base.form, base.architecture, base.context) == ("full", "LlamaForCausalLM", 128)
    assert base.parameters == sum(parameter.numel() for parameter in theirs.parameters())
    assert len(words) == theirs.config.vocab_size


def test_same_inputs_and_seed_give_the_same_model(
    recorded: MakeContext, base: ModelVersion, words: ModelVersion, documents: DatasetVersion
) -> None:
    made = recorded("same")
    again = pretrain(made.context, PRETRAIN, tokenizer=words, data=documents)
    assert again.digest == base.digest
    assert made.values("val_loss")
    assert made.values("training_tokens") == [8 * 8 * 32]


def test_dataset_without_validation_split_is_trained_without_measuring(
    store: Store, recorded: MakeContext, words: ModelVersion
) -> None:
    with store.new_dataset("document") as writer:
        writer.add(Sample(id="one", data={"text": "alpha beta gamma " * 100}, split="train"))
        data = writer.commit()
    made = recorded("unmeasured")
    pretrain(made.context, PRETRAIN, tokenizer=words, data=data)
    assert not made.values("val_loss")
    assert "training without measuring" in made.said()


def test_sft_learns_the_answers_and_leaves_the_base_as_it_is(
    store: Store, recorded: MakeContext, base: ModelVersion, conversations: DatasetVersion
) -> None:
    before = {file.path: file.sha256 for file in base.files}
    made = recorded("sft")
    phases = (Phase(levels=(0,), steps=150), Phase(levels=(0, 1), shares=(0.5, 0.5), epochs=2, learning_rate=3e-3))
    tuned = sft(made.context, SftConfig(phases=phases, take_turns="name", **TUNE), base=base, data=conversations)
    losses = made.values("loss")
    assert losses[-1] < 0.5 * losses[0]
    assert tuned.digest != base.digest
    store._verified.clear()
    folder = store.checkout(base)
    assert {file.path: file.sha256 for file in store.files.put_folder(folder)} == before
    model, words = checkpoint.load(store.checkout(tuned))
    prompt = words.apply_chat_template(conversation(1, 0)[:1], add_generation_prompt=True, return_tensors="pt")
    out = model.generate(**prompt, max_new_tokens=20, do_sample=False)
    assert words.decode(out[0, prompt.input_ids.shape[1] :], skip_special_tokens=True) == "beta is letter 1."


def test_learning_rate_follows_phases_and_warmup(
    recorded: MakeContext, base: ModelVersion, conversations: DatasetVersion
) -> None:
    made = recorded("rates")
    phases = (Phase(levels=(0,), steps=4), Phase(levels=(1,), steps=4, learning_rate=1e-4))
    config = SftConfig(phases=phases, schedule="constant", **TUNE)
    sft(made.context, config, base=base, data=conversations)
    assert made.values("learning_rate") == [5e-3, 5e-3, 1e-4, 1e-4]


def test_overlong_conversations_are_counted_and_said(store: Store, recorded: MakeContext, base: ModelVersion) -> None:
    with store.new_dataset("conversation") as writer:
        long = [{"role": "user", "content": "why? " * 100}, {"role": "assistant", "content": "because"}]
        half = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "because " * 100}]
        for name, messages in (("a", long), ("b", half), ("c", conversation(0, 0)), ("d", half[:1])):
            writer.add(Sample(id=name, data={"messages": messages}, split="train"))
        data = writer.commit()
    made = recorded("long")
    sft(made.context, SftConfig(phases=(Phase(steps=2),), **TUNE), base=base, data=data)
    assert made.values("cut") == [2]
    assert made.values("nothing_to_learn") == [2]
    assert "2 of 4 conversations: cut (context 128)" in made.said()
    with pytest.raises(DataError, match="the model takes 128"):
        sft(recorded("refuse").context, SftConfig(overlong="refuse", **TUNE), base=base, data=data)


def test_bad_inputs_of_sft_are_refused(
    store: Store, recorded: MakeContext, base: ModelVersion, words: ModelVersion, conversations: DatasetVersion
) -> None:
    context = recorded("bad").context
    with pytest.raises(DataError, match="no conversation has the level 7"):
        sft(context, SftConfig(phases=(Phase(levels=(7,)),), **TUNE), base=base, data=conversations)
    with pytest.raises(DataError, match="no samples in the split 'elsewhere'"):
        sft(context, SftConfig(split="elsewhere", **TUNE), base=base, data=conversations)
    with pytest.raises(UsageError, match="only a full one"):
        sft(context, SftConfig(**TUNE), base=words, data=conversations)
    with store.new_dataset("conversation") as writer:
        messages = [{"role": "user", "content": "hello?"}]
        writer.add(Sample(id="silent", data={"messages": messages}, split="train"))
        silent = writer.commit()
    with pytest.raises(DataError, match="assistant tokens to learn from"):
        sft(context, SftConfig(**TUNE), base=base, data=silent)


def test_bad_inputs_of_pretrain_are_refused(
    store: Store, recorded: MakeContext, words: ModelVersion, conversations: DatasetVersion
) -> None:
    context = recorded("bad").context
    with pytest.raises(UsageError, match="a dataset of documents"):
        pretrain(context, PRETRAIN, tokenizer=words, data=conversations)
    with store.new_dataset("document") as writer:
        empty = writer.commit()
    with pytest.raises(DataError, match="no samples in the split 'train'"):
        pretrain(context, PRETRAIN, tokenizer=words, data=empty)
    with store.new_dataset("document") as writer:
        writer.add(Sample(id="short", data={"text": "few"}, split="train"))
        short = writer.commit()
    with pytest.raises(DataError, match="fewer than one sequence"):
        pretrain(context, PRETRAIN, tokenizer=words, data=short)


@pytest.mark.parametrize("module", ["catena.train.tokenizer", "catena.train.pretrain", "catena.train.sft"])
def test_explaining_a_stage_does_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_configs_refuse_what_makes_no_sense() -> None:
    with pytest.raises(ValidationError, match="one of steps, tokens and epochs"):
        PretrainConfig(steps=1, epochs=1)
    with pytest.raises(ValidationError, match="longer than the model's context"):
        PretrainConfig(sequence_length=1024)
    with pytest.raises(ValidationError, match="Did you mean 'llama-4m'"):
        PretrainConfig(preset="lama-4m")
    with pytest.raises(ValidationError, match="at least one phase"):
        SftConfig(phases=())
    with pytest.raises(ValidationError, match="not both"):
        Phase(steps=1, epochs=1)
    with pytest.raises(ValidationError, match="one for each level"):
        Phase(levels=(0, 1), shares=(1.0,))


def test_licences_of_the_inputs_are_joined(store: Store) -> None:
    made = []
    for name in ("MIT", "CC0-1.0", None):
        with store.new_dataset("document", license=name) as writer:
            writer.add(Sample(id="a", data={"text": str(name)}))
            made.append(writer.commit())
    assert license_of(*made, None) == "CC0-1.0 AND MIT"
    assert license_of(made[2]) is None


def test_budgets_become_steps() -> None:
    shape: dict[str, Any] = {"batch_size": 4, "sequence_length": 16}
    drawn = PackedDocuments(documents_in_memory([[5] * 1600], 1), 16, 4, (0,))
    assert steps_of(PretrainConfig(steps=5, **shape), drawn) == 5
    assert steps_of(PretrainConfig(tokens=1000, **shape), drawn) == 15
    assert steps_of(PretrainConfig(epochs=2, **shape), drawn) == 50
    assert steps_of(PretrainConfig(**shape), drawn) == 25
    assert steps_of(PretrainConfig(tokens=1000, tokens_per_batch=100, **shape), drawn) == 10


def test_loss_mask_of_training_is_that_of_the_saved_template(store: Store, base: ModelVersion) -> None:
    words = AutoTokenizer.from_pretrained(store.checkout(base))
    [encoded] = encode_conversations(words, [conversation(2, 0)])
    assert encoded.ids == words.apply_chat_template(conversation(2, 0), return_dict=False)


class FewSteps:
    """What `Replayed` asks of a curriculum, with numbers in place of batches."""

    def __init__(self, steps: int) -> None:
        self.steps, self.ends = steps, [steps // 2, steps]

    def batch(self, step: int) -> int:
        assert 0 <= step < self.steps
        return step

    def rate(self, step: int) -> float:
        return float(step)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 12])
@pytest.mark.parametrize("every", [2, 4])
def test_replay_puts_documents_between_and_loses_no_batch_of_conversations(steps: int, every: int) -> None:
    from catena.train.replay import REPLAY_CURVE, Replayed

    documents = PackedDocuments(documents_in_memory([[5] * 40], 1), 4, 2, (7,))
    course: Any = Replayed(FewSteps(steps), documents, every)  # type: ignore[arg-type]
    drawn = [course.batch(step) for step in range(course.steps)]
    assert [batch for batch in drawn if isinstance(batch, int)] == list(range(steps))
    assert [number % every for number, batch in enumerate(drawn) if not isinstance(batch, int)] == [every - 1] * (
        (steps - 1) // (every - 1)
    )
    assert all(batch.curve == REPLAY_CURVE for batch in drawn if not isinstance(batch, int))
    assert course.ends[-1] == course.steps
    assert [course.rate(step) for step in range(course.steps)] == sorted(
        course.rate(step) for step in range(course.steps)
    )


def test_packed_conversations_are_learnt_as_well_as_padded_ones(
    recorded: MakeContext, base: ModelVersion, conversations: DatasetVersion
) -> None:
    made = recorded("packed")
    many: dict[str, Any] = {"packing": True, "sequence_length": 100, "phases": (Phase(epochs=8),)}
    sft(made.context, SftConfig(**{**TUNE, "batch_size": 2}, **many), base=base, data=conversations)
    losses = made.values("loss")
    assert losses[-1] < 0.7 * losses[0]
    again = recorded("again")
    sft(again.context, SftConfig(**{**TUNE, "batch_size": 2}, **many), base=base, data=conversations)
    assert again.values("loss") == losses


def test_token_budget_and_packing_need_fewer_steps_than_rows(
    recorded: MakeContext, base: ModelVersion, conversations: DatasetVersion
) -> None:
    steps = {}
    ways: dict[str, dict[str, Any]] = {"rows": {}, "budget": {"tokens_per_batch": 600}, "packed": {"packing": True}}
    for name, more in ways.items():
        made = recorded(name)
        sft(made.context, SftConfig(**{**TUNE, "log_every": 1, **more}), base=base, data=conversations)
        steps[name] = len(made.values("learning_rate"))
    assert steps["rows"] == 8
    assert steps["packed"] == 1
    assert steps["budget"] < steps["rows"]


def test_long_conversations_are_split_at_their_questions(
    store: Store, recorded: MakeContext, base: ModelVersion
) -> None:
    with store.new_dataset("conversation") as writer:
        turns = [turn for number in range(20) for turn in conversation(number, 0)]
        writer.add(Sample(id="long", data={"messages": turns}, split="train"))
        data = writer.commit()
    made = recorded("split")
    sft(made.context, SftConfig(phases=(Phase(steps=2),), overlong="split", **TUNE), base=base, data=data)
    assert made.values("split") == [1]
    assert "1 of 1 conversations: split (context 128)" in made.said()


def test_packing_is_refused_where_a_prompt_stands_before_each_conversation() -> None:
    with pytest.raises(ValidationError, match="a prompt stands before each"):
        SftConfig(packing=True, adapter=AdapterConfig(kind="prompt"))


def test_separate_documents_are_packed_whole_and_measured(
    recorded: MakeContext, words: ModelVersion, documents: DatasetVersion
) -> None:
    made = recorded("separate")
    config = PRETRAIN.model_copy(update={"documents": "separate", "sequence_length": 32, "tokens_per_batch": 256})
    pretrain(made.context, config, tokenizer=words, data=documents)
    assert made.values("val_loss")
    assert made.values("split")[0] > 0
    assert made.values("training_tokens") == [8 * 256]


def test_model_is_pretrained_further(
    recorded: MakeContext, base: ModelVersion, words: ModelVersion, documents: DatasetVersion
) -> None:
    first, further = recorded("first"), recorded("further")
    config = PRETRAIN.model_copy(update={"preset": None, "steps": 20})
    made = pretrain(further.context, config, base=base, data=documents)
    pretrain(first.context, PRETRAIN.model_copy(update={"steps": 20}), tokenizer=words, data=documents)
    assert made.parameters == base.parameters
    assert further.values("val_loss")[0] < first.values("val_loss")[0]
    with pytest.raises(UsageError, match="brings its own tokenizer"):
        pretrain(further.context, config, base=base, tokenizer=words, data=documents)
    with pytest.raises(UsageError, match="nothing to begin with"):
        pretrain(further.context, config, data=documents)
    with pytest.raises(UsageError, match="needs a preset"):
        pretrain(further.context, config, tokenizer=words, data=documents)
    longer = config.model_copy(update={"sequence_length": 256})
    with pytest.raises(UsageError, match="longer than the model's context, 128"):
        pretrain(further.context, longer, base=base, data=documents)


def test_character_tokenizer_has_the_characters_of_the_text_and_no_others(
    store: Store, recorded: MakeContext, documents: DatasetVersion
) -> None:
    made = tokenizer(recorded("characters").context, TokenizerConfig(kind="character"), source=documents)
    words = AutoTokenizer.from_pretrained(store.checkout(made))
    ids = words("世界 alpha.", add_special_tokens=False).input_ids
    assert len(ids) == 9
    assert words.decode(ids) == "世界 alpha."
    assert words("ß", add_special_tokens=False).input_ids == [words.unk_token_id]
    assert made.architecture == "Characters"


def test_python_handle_trains_on_what_the_dataset_is(
    store: Store, base: ModelVersion, words: ModelVersion, documents: DatasetVersion, conversations: DatasetVersion
) -> None:
    for made in (base, words, documents, conversations):
        store.index.add_artifact(made)
    with Workspace(store) as workspace:
        handle = workspace.model(base.digest)
        small: dict[str, Any] = {"warmup_steps": 2, "log_every": 1}
        tuned = handle.train(conversations.digest, epochs=2, batch_size=16, optimizer="sgd", name="tuned", **small)
        further = handle.train(workspace.dataset(documents.digest), epochs=0.5, sequence_length=32, **small)
        new = workspace.model(words.digest).train(documents, preset="llama-nano", steps=2, sequence_length=32)
        assert workspace.model("tuned").version.digest == tuned.version.digest
        assert base.digest in tuned.version.parents
        (run,) = store.index.find_runs(output=tuned.version.digest)
        assert run.metrics["number_format"] in ("float32", "bfloat16", "float16")
        assert run.metrics["device"] in ("cpu", "cuda")
        assert len({base.digest, tuned.version.digest, further.version.digest, new.version.digest}) == 4
        with pytest.raises(UsageError, match="epochs of their own"):
            handle.train(conversations.digest, epochs=2, phases=[{"steps": 1}])
        with pytest.raises(RecipeError, match="batch_sise"):
            handle.train(conversations.digest, batch_sise=2)


def test_a_stopped_training_goes_on_with_other_settings_that_change_nothing_of_what_is_learnt(
    store: Store, words: ModelVersion, documents: DatasetVersion
) -> None:
    for made in (words, documents):
        store.index.add_artifact(made)
    said: list[str] = []

    def train(stop: int, **config: Any) -> ModelVersion:
        def listen(event: dict[str, Any]) -> None:
            said.extend([event["message"]] if event["event"] == "log" else ())
            if event.get("name") == "loss" and event["at_step"] == stop:
                raise KeyboardInterrupt

        values = {**PRETRAIN.model_dump(exclude_unset=True), "checkpoint_seconds": 0, **config}
        inputs = {"tokenizer": words.digest, "data": documents.digest}
        made = workspace.do("train.pretrain", inputs, values, listeners=[listen])
        assert isinstance(made, ModelVersion)
        return made

    with Workspace(store) as workspace:
        with pytest.raises(Cancelled):
            train(6)
        once = train(0, micro_batch_size=4, gradient_checkpointing=True, checkpoint_seconds=60)
        assert any("going on from step" in line for line in said), said
        assert train(0, parallel={"processes": 2}).digest == once.digest
        with pytest.raises(Cancelled):
            train(2, parallel={"compression": "float16"})  # which is another training
