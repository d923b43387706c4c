"""Facts about training with adapters: it resumes bit-exactly, gives a small artifact, and that answers and merges."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from catena.core.errors import UsageError
from catena.core.generate import Message, Request, SamplingParams
from catena.core.sample import Sample
from catena.core.types import DatasetVersion, ModelVersion
from catena.hub.store import Store
from catena.models import checkpoint
from catena.models.adapters import AdapterConfig, attach, quiet_peft
from catena.models.presets import build
from catena.models.tokenizer import load_tokenizer
from catena.train.artifacts import store_model
from catena.train.classify import ClassifyConfig, classify
from catena.train.loop import train
from catena.train.merge import MergeConfig, merge
from catena.train.sft import Phase, SftConfig, sft
from catena.train.tokenizer import TokenizerConfig, tokenizer
from catena.workspace import Workspace
from tests.train.conftest import Recorded, conversation
from tests.train.test_loop import CONFIG, Died, die, make_plan, stopping

MakeContext = Callable[[str], Recorded]
KINDS: list[dict[str, Any]] = [
    {"kind": "lora", "dropout": 0.2},
    {"kind": "lora", "base": "nf4"},
    {"kind": "lora", "base": "bfloat16"},
    {"kind": "dora"},
    {"kind": "p_tuning"},
    {"kind": "prefix"},
]


def adapted(seed: int, settings: dict[str, Any]) -> Any:
    return attach(build("llama-nano", 70, 0), AdapterConfig(**settings), seed)


def trained(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


@pytest.mark.parametrize("settings", KINDS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_training_that_died_goes_on_to_the_same_bits(recorded: MakeContext, settings: dict[str, Any]) -> None:
    made, whole = recorded("whole"), adapted(1, settings)
    train(made.context, whole, make_plan(8), CONFIG)
    assert made.values("loss")[-1] < made.values("loss")[0]
    with pytest.raises(Died):
        train(recorded("killed").context, adapted(1, settings), stopping(make_plan(8), 5, die), CONFIG)
    made, resumed = recorded("killed"), adapted(2, settings)  # other weights: all must come from the checkpoint
    train(made.context, resumed, make_plan(8), CONFIG)
    assert "going on from step 5 of 8" in made.said()
    expected, found = trained(whole), trained(resumed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_checkpoint_holds_the_adapter_only(recorded: MakeContext) -> None:
    made, model = recorded("small"), adapted(1, {"kind": "lora", "rank": 2})
    train(made.context, model, make_plan(2), CONFIG)
    size = sum(path.stat().st_size for path in made.context.workdir.rglob("*.safetensors"))
    assert size < 2 * sum(tensor.nbytes for tensor in build("llama-nano", 70, 0).parameters())


@pytest.fixture
def base(recorded: MakeContext, documents: DatasetVersion, conversations: DatasetVersion) -> ModelVersion:
    """A model that knows nothing yet, with a tokenizer of the documents."""
    made = recorded("base").context
    words = tokenizer(made, TokenizerConfig(vocab_size=400), source=documents, conversations=conversations)
    loaded = load_tokenizer(made.store.checkout(words))
    model = build("llama-nano", len(loaded), 0, pad_id=loaded.pad_token_id, end_id=loaded.eos_token_id)
    stored = store_model(made, model, loaded, "CC0-1.0")
    made.store.index.add_artifact(stored)
    return stored


def tuned(recorded: MakeContext, model: ModelVersion, data: DatasetVersion, **settings: Any) -> ModelVersion:
    config = SftConfig(
        phases=(Phase(levels=(0,), steps=16),),
        batch_size=8,
        learning_rate=2e-2,
        warmup_steps=2,
        log_every=2,
        adapter=AdapterConfig(rank=16, alpha=32, **settings),
    )
    made = recorded("tune")
    found = sft(made.context, config, base=model, data=data)
    assert made.values("loss")[-1] < made.values("loss")[0]
    made.context.store.index.add_artifact(found)
    return found


def prompt_of(words: Any) -> torch.Tensor:
    ids: torch.Tensor = words.apply_chat_template(
        conversation(1, 0)[:1], add_generation_prompt=True, return_tensors="pt"
    ).input_ids
    return ids


@torch.no_grad()
def test_tuning_gives_an_adapter_that_plain_peft_loads_and_merging_gives_its_model(
    store: Store, recorded: MakeContext, base: ModelVersion, conversations: DatasetVersion
) -> None:
    with torch.enable_grad():
        adapter = tuned(recorded, base, conversations, kind="lora")
    assert (adapter.form, adapter.base, adapter.license) == ("adapter", base.digest, "CC0-1.0")
    assert (adapter.architecture, adapter.context) == ("LlamaForCausalLM", 128)
    assert adapter.size - 400_000 < base.size
    folder = store.checkout(adapter)
    plain = AutoModelForCausalLM.from_pretrained(store.checkout(base)).eval()
    with quiet_peft():
        theirs = PeftModel.from_pretrained(plain, folder).eval()
    loaded, words = checkpoint.load(folder)
    ids = prompt_of(words)
    expected = theirs(input_ids=ids).logits
    scale = max(1.0, float(expected.abs().max()))
    assert float((loaded(input_ids=ids).logits - expected).abs().max()) < 1e-5 * scale

    full = merge(recorded("merge").context, MergeConfig(), adapter=adapter)
    assert (full.form, full.base, full.parameters) == ("full", None, base.parameters)
    merged = AutoModelForCausalLM.from_pretrained(store.checkout(full)).eval()
    assert float((merged(input_ids=ids).logits - expected).abs().max()) < 1e-5 * scale


def test_adapter_answers_in_the_engine_as_its_merged_model_does(
    store: Store, recorded: MakeContext, base: ModelVersion, conversations: DatasetVersion
) -> None:
    adapter = tuned(recorded, base, conversations, kind="lora", base="nf4")
    merged = merge(recorded("merge").context, MergeConfig(), adapter=adapter)
    answers = []
    for model in (adapter, merged):
        generator = recorded("ask").context.generator(model)
        try:
            asked = [Message("user", conversation(number, 0)[0]["content"]) for number in range(4)]
            requests = [
                Request(str(number), (message,), SamplingParams(max_tokens=12)) for number, message in enumerate(asked)
            ]
            answers.append(sorted((done.request_id, done.text) for done in generator.generate(requests)))
        finally:
            generator.close()
    assert answers[0] == answers[1]


def test_prompt_adapters_are_refused_where_they_would_be_passed_by(
    recorded: MakeContext, base: ModelVersion, conversations: DatasetVersion
) -> None:
    adapter = tuned(recorded, base, conversations, kind="prompt", virtual_tokens=4)
    context = recorded("refused").context
    for use in (lambda: context.generator(adapter), lambda: merge(context, MergeConfig(), adapter=adapter)):
        with pytest.raises(UsageError, match="cannot be merged"):
            use()


def test_merging_what_does_not_belong_together_is_refused(
    recorded: MakeContext, base: ModelVersion, conversations: DatasetVersion
) -> None:
    context = recorded("refused").context
    with pytest.raises(UsageError, match="is a full model"):
        merge(context, MergeConfig(), adapter=base)
    adapter = tuned(recorded, base, conversations, kind="lora")
    other = base.model_copy(update={"digest": "0" * 64})
    with pytest.raises(UsageError, match="was trained on"):
        merge(context, MergeConfig(), adapter=adapter, base=other)


@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_classifier_is_trained_through_an_adapter_and_comes_back(
    store: Store, recorded: MakeContext, base: ModelVersion, kind: str
) -> None:
    with store.new_dataset("example") as writer:
        for number in range(24):
            text, label = (("alpha beta", "first"), ("omega psi", "last"))[number % 2]
            data = {"input": f"{text} {number}", "output": label}
            writer.add(Sample(id=f"e{number}", data=data, split="train"))
        examples = writer.commit()
    made = recorded("classify")
    config = ClassifyConfig(
        steps=20, batch_size=8, learning_rate=1e-2, warmup_steps=2, log_every=2, adapter=AdapterConfig(kind=kind)
    )
    found = classify(made.context, config, base=base, data=examples)
    assert found.form == "adapter"
    assert made.values("loss")[-1] < 0.5 * made.values("loss")[0]
    model = checkpoint.load_model(store.checkout(found), adapted=True)
    assert model.config.id2label == {0: "first", 1: "last"}


def test_recipe_of_the_documentation_runs_from_a_base_to_an_evaluated_and_merged_model(
    store: Store, base: ModelVersion, conversations: DatasetVersion, tmp_path: Path
) -> None:
    store.index.add_artifact(conversations)
    store.index.add_name("base", base.digest)
    store.index.add_name("conversations", conversations.digest)
    text = (Path(__file__).parent.parent.parent / "docs" / "adapters.md").read_text(encoding="utf-8")
    block = text.split("    name: adapter-recipe")[1].split("\n\n")[0]
    recipe = tmp_path / "adapter.yaml"
    recipe.write_text("name: adapter-recipe" + block.replace("\n    ", "\n") + "\n", encoding="utf-8")
    done = Workspace(store).run(recipe, overrides=["mine.batch_size=8"])
    adapter, whole = done.outputs["mine"], done.outputs["whole"]
    assert isinstance(adapter, ModelVersion)
    assert isinstance(whole, ModelVersion)
    assert (adapter.form, adapter.base, whole.form) == ("adapter", base.digest, "full")
    assert "answers" in done.outputs
