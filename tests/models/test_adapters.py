"""Facts about adapters: each kind learns on each family of models, loads in plain PEFT, and merges where it can."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from torch.nn.functional import cross_entropy
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from catena.core.errors import ConfigError, DataError, NotFound, UsageError
from catena.models import adapter_folder, checkpoint
from catena.models.adapters import AdapterConfig, attach, dense_layers, quiet_peft, target_layers
from catena.models.attention import use_local_global
from catena.models.attention_settings import LocalGlobal
from catena.models.nf4 import round_, weight_bytes
from catena.models.presets import build
from catena.models.virtual_tokens import hidden_states, logits

VOCABULARY = 400
BERT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_labels": 5,
}
LLAMA: dict[str, Any] = {**BERT, "num_key_value_heads": 1, "pad_token_id": 0}
KINDS = [
    {"kind": "lora", "dropout": 0.1},
    {"kind": "lora", "base": "int8", "rslora": True},
    {"kind": "lora", "base": "nf4"},
    {"kind": "dora"},
    {"kind": "prompt", "virtual_tokens": 4, "init_text": "path component 路径"},
    {"kind": "p_tuning", "virtual_tokens": 4},
    {"kind": "prefix", "virtual_tokens": 4},
]
LEARNT = {"lora", "dora"}


def family(name: str) -> Any:
    torch.manual_seed(0)
    if name == "llama":
        return build("llama-nano", VOCABULARY, 0).eval()
    if name == "gpt2":
        settings = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, n_positions=64)
        return GPT2LMHeadModel(settings).eval()
    if name == "t5":
        sizes = {"d_model": 32, "d_ff": 64, "d_kv": 16, "num_layers": 2, "num_heads": 2}
        return T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, decoder_start_token_id=0, **sizes)).eval()
    of_bert = {
        "sequence": BertForSequenceClassification,
        "token": BertForTokenClassification,
        "masked": BertForMaskedLM,
    }
    return of_bert[name](BertConfig(**BERT)).eval()


def inputs_of(name: str) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 300, (6, 12), generator=torch.Generator().manual_seed(1))
    if name in ("llama", "gpt2"):
        return {"input_ids": ids}
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    given = {"input_ids": ids, "attention_mask": mask}
    return {**given, "decoder_input_ids": ids[:, :5]} if name == "t5" else given


def learn(adapted: Any, given: dict[str, torch.Tensor], steps: int = 8, rate: float = 2e-2) -> list[float]:
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    losses = []
    adapted.eval()  # without dropout the loss shows what was learnt
    shape = logits(adapted, **given).shape[:-1]
    labels = torch.randint(0, 5, shape, generator=torch.Generator().manual_seed(2)).flatten()
    for _ in range(steps):
        loss = cross_entropy(logits(adapted, **given).flatten(0, -2), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def answer(model: Any, given: dict[str, torch.Tensor]) -> torch.Tensor:
    return logits(model.eval(), **given)


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """How far logits are apart, against 1 or the largest of them."""
    assert one.shape == other.shape
    return float((one - other).abs().max() / other.abs().max().clamp_min(1.0))


@pytest.mark.parametrize("name", ["llama", "sequence", "token", "t5"])
@pytest.mark.parametrize("settings", KINDS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_adapter_learns_and_comes_back_with_equal_logits(
    name: str, settings: dict[str, Any], tokenizer: Any, tmp_path: Path
) -> None:
    config, given = AdapterConfig(**settings), inputs_of(name)
    adapted = attach(family(name), config, 3, tokenizer)
    losses = learn(adapted, given, rate=2e-3 if config.rslora else 2e-2)
    assert losses[-1] < losses[0] - 0.02
    trained = answer(adapted, given)
    adapter_folder.save(adapted, tokenizer, tmp_path / "a", "base", config.base)

    base = family(name)  # what plain PEFT is given: the base, with the values that it had in training
    if config.base != "float32":
        round_(base, dense_layers(base), config.base)
    with quiet_peft():
        plain = PeftModel.from_pretrained(base, tmp_path / "a")
    assert apart(answer(plain, given), trained) < 1e-5

    ours = adapter_folder.put_on(family(name), tmp_path / "a")
    assert apart(answer(ours, given), trained) < 1e-5
    assert adapter_folder.read(tmp_path / "a")["kind"] == config.kind
    if config.kind not in LEARNT:
        with pytest.raises(UsageError, match="cannot be merged"):
            adapter_folder.merge(ours)
        return
    merged = adapter_folder.merge(ours)
    assert isinstance(merged, PreTrainedModel)
    assert type(merged) is type(family(name))
    assert apart(answer(merged, given), trained) < 1e-5


def test_layers_of_gpt2_are_adapted_and_merged_but_not_rounded(tokenizer: Any, tmp_path: Path) -> None:
    given, adapted = inputs_of("gpt2"), attach(family("gpt2"), AdapterConfig(kind="lora"), 3)
    losses = learn(adapted, given)
    assert losses[-1] < losses[0] - 0.05
    adapter_folder.save(adapted, tokenizer, tmp_path / "a", "base")
    merged = adapter_folder.merge(adapter_folder.put_on(family("gpt2"), tmp_path / "a"))
    assert apart(answer(merged, given), answer(adapted, given)) < 1e-5
    with pytest.raises(ConfigError, match="no plain linear layers"):
        attach(family("gpt2"), AdapterConfig(kind="lora", base="nf4"), 3)


@pytest.mark.parametrize("settings", KINDS[2:], ids=lambda settings: "-".join(map(str, settings.values())))
def test_only_the_adapter_is_trained_and_the_base_stays(settings: dict[str, Any], tokenizer: Any) -> None:
    model = family("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = AdapterConfig(**settings)
    adapted = attach(model, config, 3, tokenizer)
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert 0 < trained < 0.4 * sum(tensor.numel() for tensor in before.values())
    learn(adapted, inputs_of("llama"), 3)
    if config.base == "float32":
        after = {name.replace(".base_layer", ""): tensor for name, tensor in adapted.base_model.state_dict().items()}
        after = {name.removeprefix("model.") if name not in before else name: tensor for name, tensor in after.items()}
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("settings", [KINDS[0], KINDS[3], KINDS[5]], ids=["lora", "dora", "p_tuning"])
def test_equal_seeds_give_equal_bytes(settings: dict[str, Any], tokenizer: Any, tmp_path: Path) -> None:
    random = torch.get_rng_state()
    for number, seed in enumerate((3, 3, 4)):
        adapted = attach(family("llama"), AdapterConfig(**settings), seed, tokenizer)
        adapter_folder.save(adapted, tokenizer, tmp_path / str(number), "base")
    names = sorted(path.name for path in (tmp_path / "0").iterdir())
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "config.json"} <= set(names)
    assert not any(name.endswith((".bin", ".md")) for name in names)
    same = [(tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes() for name in names]
    assert all(same)
    weights = "adapter_model.safetensors"
    assert (tmp_path / "0" / weights).read_bytes() != (tmp_path / "2" / weights).read_bytes()
    torch.manual_seed(0)
    expected = torch.get_rng_state()
    family("llama")
    attach(build("llama-nano", VOCABULARY, 0), AdapterConfig(**settings), 3, tokenizer)
    assert torch.equal(torch.get_rng_state(), expected)
    torch.set_rng_state(random)


@pytest.mark.parametrize("settings", [None, *KINDS], ids=lambda settings: settings and settings["kind"])
def test_hidden_states_are_those_of_the_whole_model(settings: dict[str, Any] | None, tokenizer: Any) -> None:
    model, given = family("llama"), inputs_of("llama")
    if settings is not None:
        model = attach(model, AdapterConfig(**settings), 3, tokenizer)
        learn(model, given, 3)
    with torch.no_grad():
        states = hidden_states(model, given["input_ids"])
        assert apart(model.get_output_embeddings()(states), answer(model, given)) < 1e-6


@pytest.mark.parametrize("name", ["llama", "sequence", "t5"])
def test_prefix_is_seen_by_the_model(name: str) -> None:
    adapted, given = attach(family(name), AdapterConfig(kind="prefix", virtual_tokens=4), 3), inputs_of(name)
    before = answer(adapted, given)
    with torch.no_grad():
        adapted.prompt_encoder["default"].embedding.weight.mul_(5)
    assert apart(answer(adapted, given), before) > 1e-3


def test_prompt_begins_as_its_text_said_again_to_its_length(tokenizer: Any) -> None:
    text = "path component"
    ids = tokenizer.encode(text, add_special_tokens=False)
    adapted = attach(family("llama"), AdapterConfig(kind="prompt", virtual_tokens=7, init_text=text), 3, tokenizer)
    expected = adapted.get_input_embeddings().weight[[ids[at % len(ids)] for at in range(7)]]
    assert torch.equal(adapted.prompt_encoder["default"].embedding.weight, expected)
    with pytest.raises(ConfigError, match="no tokens"):
        attach(family("llama"), AdapterConfig(kind="prompt", init_text=" x"), 3)


def test_rounded_bases_need_a_fraction_of_the_memory() -> None:
    sizes = {}
    for base in ("float32", "bfloat16", "int8", "nf4"):
        adapted = attach(build("llama-1m", VOCABULARY, 0), AdapterConfig(kind="lora", base=base), 3)
        layers = [layer for name, layer in adapted.named_modules() if name.endswith(".base_layer")]
        sizes[base] = sum(weight_bytes(layer) for layer in layers)
    assert sizes["bfloat16"] * 2 == sizes["float32"]
    assert sizes["int8"] < 0.27 * sizes["float32"]
    assert sizes["nf4"] < 0.15 * sizes["float32"]


def test_bfloat16_base_trains_in_float32_adapters() -> None:
    adapted, given = attach(family("llama"), AdapterConfig(kind="lora", base="bfloat16"), 3), inputs_of("llama")
    assert {parameter.dtype for parameter in adapted.parameters() if parameter.requires_grad} == {torch.float32}
    losses = learn(adapted, given)
    assert losses[-1] < losses[0] - 0.05


def test_all_linear_layers_but_the_head_are_adapted_by_default() -> None:
    short = target_layers(family("llama"))
    assert short == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert target_layers(family("llama"), ["v_proj", "q_proj"]) == ["q_proj", "v_proj"]
    whole = target_layers(family("sequence"))  # `dense` is the pooler's name too, so whole names are given
    assert "bert.encoder.layer.0.output.dense" in whole
    assert not any("pooler" in name or "classifier" in name for name in whole)


def test_new_heads_and_poolers_are_trained_in_full() -> None:
    model = DistilBertForSequenceClassification(DistilBertConfig(vocab_size=300, dim=24, hidden_dim=48, n_layers=1))
    for made, expected in ((model, {"pre_classifier", "classifier"}), (family("sequence"), {"pooler", "classifier"})):
        adapted = attach(made, AdapterConfig(kind="lora"), 3)
        trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
        whole = {name.partition(".modules_to_save")[0].rpartition(".")[2] for name in trained if "to_save" in name}
        assert whole == expected


def test_masked_language_models_take_low_rank_adapters_only() -> None:
    given = inputs_of("masked")
    losses = learn(attach(family("masked"), AdapterConfig(kind="lora"), 3), given)
    assert losses[-1] < losses[0] - 0.05
    with pytest.raises(ConfigError, match="not BertForMaskedLM"):
        attach(family("masked"), AdapterConfig(kind="prompt"), 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "none", "base": "nf4"}, "choose a kind"),
        ({"kind": "dora", "base": "nf4"}, "with base nf4 use lora"),
        ({"kind": "lora", "init_text": "x"}, "needs kind: prompt"),
        ({"kind": "lora", "rank": 0}, "greater than or equal"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AdapterConfig(**settings)


def test_what_peft_gets_wrong_is_refused_with_a_reason() -> None:
    classifier = LlamaForSequenceClassification(LlamaConfig(**LLAMA))
    with pytest.raises(ConfigError, match="behind virtual tokens"):
        attach(classifier, AdapterConfig(kind="p_tuning"), 3)
    distilled = DistilBertForSequenceClassification(DistilBertConfig(vocab_size=300, dim=24, hidden_dim=48, n_layers=1))
    with pytest.raises(ConfigError, match="no prefix"):
        attach(distilled, AdapterConfig(kind="prefix"), 3)
    with pytest.raises(ConfigError, match="base bfloat16"):
        attach(family("sequence"), AdapterConfig(kind="lora", base="bfloat16"), 3)
    with pytest.raises(ConfigError, match="no linear layer 'q_prj'") as caught:
        attach(family("llama"), AdapterConfig(kind="lora", targets=("q_prj",)), 3)
    assert "q_proj" in caught.value.hint
    with pytest.raises(ConfigError, match="lm_head"):
        attach(family("llama"), AdapterConfig(kind="lora", targets=("lm_head",)), 3)
    adapted = attach(family("llama"), AdapterConfig(kind="prefix"), 3)
    ids = inputs_of("llama")["input_ids"]
    with pytest.raises(UsageError, match="packed documents"):
        hidden_states(adapted, ids, position_ids=torch.arange(12)[None])
    adapted.get_base_model().activation_checkpointing_enable()
    with pytest.raises(ConfigError, match="gradient checkpointing"):
        hidden_states(adapted, ids)


@pytest.fixture
def stored(folder: Path, tokenizer: Any, tmp_path: Path) -> Any:
    """Makes an adapter folder that lies beside its base, as a store lays them out."""
    (tmp_path / "base").symlink_to(folder)

    def make(**settings: Any) -> tuple[Path, torch.Tensor]:
        model = checkpoint.load_model(folder)
        adapted = attach(model, AdapterConfig(**settings), 3, tokenizer)
        learn(adapted, inputs_of("llama"), 4)
        target = tmp_path / settings["kind"]
        adapter_folder.save(adapted, tokenizer, target, "base", settings.get("base", "float32"))
        return target, answer(adapted, inputs_of("llama"))

    return make


def test_checkpoint_loads_an_adapter_merged_with_the_base_beside_it(stored: Any) -> None:
    folder, trained = stored(kind="lora", base="nf4")
    model, words = checkpoint.load(folder)
    assert apart(answer(model, inputs_of("llama")), trained) < 1e-5
    assert len(words) == model.config.vocab_size
    facts = checkpoint.describe(folder)
    assert (facts["architecture"], facts["context"], facts["dtype"]) == ("LlamaForCausalLM", 128, "float32")
    assert facts["parameters"] < 0.3 * sum(parameter.numel() for parameter in model.parameters())


def test_adapter_attends_as_it_was_trained_whatever_its_base_does(folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "base").symlink_to(folder)
    model = use_local_global(checkpoint.load_model(folder), LocalGlobal(window=4, memory=0))
    adapted = attach(model, AdapterConfig(kind="lora"), 3)
    learn(adapted, inputs_of("llama"), 4)
    adapter_folder.save(adapted, tokenizer, tmp_path / "a", "base")
    loaded = answer(checkpoint.load_model(tmp_path / "a"), inputs_of("llama"))
    assert apart(loaded, answer(adapted, inputs_of("llama"))) < 1e-5


def test_adapter_that_cannot_be_merged_is_kept_around_its_base_when_asked(stored: Any) -> None:
    folder, trained = stored(kind="p_tuning", virtual_tokens=3)
    with pytest.raises(UsageError, match="cannot be merged"):
        checkpoint.load(folder)
    assert apart(answer(checkpoint.load_model(folder, adapted=True), inputs_of("llama")), trained) < 1e-5


def test_bad_adapter_folders_are_refused_with_a_reason(stored: Any, tokenizer: Any, tmp_path: Path) -> None:
    folder, _ = stored(kind="lora")
    with pytest.raises(DataError, match="does not fit the model"):
        adapter_folder.put_on(build("llama-1m", 300, 0), folder)
    settings = folder / "adapter_config.json"
    text = settings.read_text()
    settings.write_text(text.replace('"LORA"', '"OFT"'))
    with pytest.raises(DataError, match="kind that Catena does not know"):
        checkpoint.load_model(folder)
    settings.write_text(text[:50])
    with pytest.raises(DataError, match="cannot be read"):
        checkpoint.load_model(folder)
    settings.write_text(text)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(DataError, match="has no adapter_model"):
        checkpoint.load_model(folder)
    (tmp_path / "base").unlink()
    (folder / "adapter_model.bin").rename(folder / "adapter_model.safetensors")
    with pytest.raises(NotFound, match="not beside it"):
        checkpoint.load_model(folder)
