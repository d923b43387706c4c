"""Facts about heads: any family's folder loads with equal logits, a new head is the seed's, a body is never made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from catena.core.errors import DataError, UsageError
from catena.models import checkpoint, quant
from catena.models.heads import CLASSES, context_of, head_of, labels_of
from catena.models.presets import build

IDS = torch.tensor([[5, 40, 50, 60, 7, 3], [5, 41, 51, 3, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
COMMON: dict[str, Any] = {
    **{"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 2},
    **{"eos_token_id": 1},
}
GROUPED = {**COMMON, "num_key_value_heads": 2, "head_dim": 8}
T5 = {
    **{"vocab_size": 300, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    **{"decoder_start_token_id": 0},
}
GPT2 = {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "pad_token_id": 0}
DISTILBERT = {"vocab_size": 300, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "pad_token_id": 0}
BART = {
    **{"vocab_size": 300, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48},
    **{"decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4},
    **{"max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1},
    **{"decoder_start_token_id": 1, "forced_eos_token_id": None},
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("causal", GROUPED),
    "Mistral": ("causal", GROUPED),
    "Qwen3": ("causal", GROUPED),
    "Gemma2": ("causal", GROUPED),
    "GPT2": ("causal", GPT2),
    "Bert": ("masked", COMMON),
    "Roberta": ("masked", {**COMMON, "max_position_embeddings": 66}),
    "DistilBert": ("masked", DISTILBERT),
    "ModernBert": ("masked", COMMON),
    "T5": ("seq2seq", T5),
    "Bart": ("seq2seq", BART),
}
NO_TOKEN_HEAD = {"Bart"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each family with random weights, as plain transformers writes it."""
    found = {}
    for name, (head, settings) in FAMILIES.items():
        config = getattr(transformers, f"{name}Config")(**settings)
        torch.manual_seed(3)
        found[name] = tmp_path_factory.mktemp(name)
        CLASSES[head].from_config(config).save_pretrained(found[name])  # type: ignore[index]
    return found


def logits(model: Any) -> torch.Tensor:
    name = type(model).__name__
    if "SequenceClassification" in name:
        ids = IDS.masked_fill(IDS.eq(3), 1)  # some take the state of the end token
        return model.eval()(input_ids=ids, attention_mask=MASK).logits
    generates = model.config.is_encoder_decoder and "Classification" not in name
    extra = {"decoder_input_ids": IDS} if generates else {}
    return model.eval()(input_ids=IDS, attention_mask=MASK, **extra).logits


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_any_family_loads_and_gives_the_logits_of_transformers(family: str, folders: dict[str, Path]) -> None:
    head, _ = FAMILIES[family]
    settings = checkpoint.read_config(folders[family])
    assert head_of(settings) == head
    ours = checkpoint.load_model(folders[family])
    theirs = CLASSES[head].from_pretrained(folders[family])  # type: ignore[index]
    assert torch.equal(logits(ours), logits(theirs))
    facts = checkpoint.describe(folders[family])
    assert facts["parameters"] == sum(parameter.numel() for parameter in ours.parameters())
    assert facts["architecture"] == type(ours).__name__


@pytest.mark.parametrize("head", ["sequence", "token"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_new_head_is_decided_by_its_seed_and_loads_in_transformers(
    family: str, head: str, folders: dict[str, Path], tokenizer: Any, tmp_path: Path
) -> None:
    if head == "token" and family in NO_TOKEN_HEAD:
        with pytest.raises(DataError, match="cannot be loaded"):
            checkpoint.load_model(folders[family], head="token", labels=("a", "b", "c"))
        return
    labels = ("a", "b", "笑")
    one, again, other = (
        checkpoint.load_model(folders[family], head=head, labels=labels, seed=seed)  # type: ignore[arg-type]
        for seed in (1, 1, 2)
    )
    assert torch.equal(logits(one), logits(again))
    assert not torch.equal(logits(one), logits(other))
    body = checkpoint.load_model(folders[family]).get_input_embeddings().weight
    assert torch.equal(one.get_input_embeddings().weight, body)
    checkpoint.save(one, tokenizer, tmp_path)
    theirs = CLASSES[head].from_pretrained(tmp_path)  # type: ignore[index]
    assert torch.equal(logits(theirs), logits(one))
    assert theirs.config.id2label == {0: "a", 1: "b", 2: "笑"}
    assert labels_of(checkpoint.read_config(tmp_path)) == labels
    assert torch.equal(logits(checkpoint.load_model(tmp_path)), logits(one))


def test_a_folder_in_pieces_loads(folders: dict[str, Path], tmp_path: Path) -> None:
    whole = checkpoint.load_model(folders["Llama"])
    whole.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert len(checkpoint.weight_files(tmp_path)) > 2
    with torch.no_grad():
        assert torch.equal(logits(checkpoint.load_model(tmp_path)), logits(whole))
    assert checkpoint.describe(tmp_path)["parameters"] == checkpoint.describe(folders["Llama"])["parameters"]
    checkpoint.weight_files(tmp_path)[0].unlink()
    with pytest.raises(DataError, match="lacks the weight file"):
        checkpoint.load_model(tmp_path, head="sequence", labels=("a", "b"))


def changed(folder: Path, target: Path, drop: str = "", config: dict[str, Any] | None = None) -> Path:
    tensors = {name: value for name, value in load_file(folder / "model.safetensors").items() if name != drop}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    settings = checkpoint.read_config(folder) | (config or {})
    (target / "config.json").write_text(json.dumps(settings))
    return target


def test_a_missing_weight_of_the_body_is_refused_under_a_new_head_too(folders: dict[str, Path], tmp_path: Path) -> None:
    damaged = changed(folders["Bert"], tmp_path, drop="bert.encoder.layer.1.output.dense.weight")
    with pytest.raises(DataError, match=r"lacks 1 of the weights.*layer\.1\.output"):
        checkpoint.load_model(damaged, head="sequence", labels=("a", "b"))


def test_weights_of_a_deeper_body_are_refused_under_a_new_head_too(folders: dict[str, Path], tmp_path: Path) -> None:
    shallow = changed(folders["Bert"], tmp_path, config={"num_hidden_layers": 1})
    with pytest.raises(DataError, match="does not know 16 of the weights"):
        checkpoint.load_model(shallow, head="token", labels=("a", "b"))


def test_a_body_without_head_gets_one_only_when_asked(folders: dict[str, Path], tmp_path: Path) -> None:
    body = checkpoint.load_model(folders["Llama"]).model
    body.save_pretrained(tmp_path)
    with pytest.raises(DataError, match="lacks 1 of the weights, for example lm_head"):
        checkpoint.load_model(tmp_path)
    assert checkpoint.load_model(tmp_path, head="sequence", labels=("a", "b")).config.num_labels == 2


def test_a_classifier_of_other_labels_is_refused(folders: dict[str, Path], tokenizer: Any, tmp_path: Path) -> None:
    checkpoint.save(checkpoint.load_model(folders["Bert"], head="sequence", labels=("a", "b")), tokenizer, tmp_path)
    assert checkpoint.load_model(tmp_path, head="sequence", labels=("a", "b")).config.num_labels == 2
    with pytest.raises(DataError, match="other labels already"):
        checkpoint.load_model(tmp_path, head="sequence", labels=("a", "c"))


def test_a_checkpoint_of_another_architecture_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    wrong = changed(folders["Bert"], tmp_path, config={"architectures": ["LlamaForCausalLM"], "model_type": "llama"})
    with pytest.raises(DataError):
        checkpoint.load_model(wrong)
    with pytest.raises(DataError, match="cannot be loaded"):
        checkpoint.load_model(folders["Llama"], head="masked")


def test_labels_are_for_classifiers(folders: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="sequence and token"):
        checkpoint.load_model(folders["Bert"], labels=("a", "b"))


def test_a_quantized_model_gets_no_new_head(tokenizer: Any, tmp_path: Path) -> None:
    model = build("llama-nano", len(tokenizer), 1).eval()
    quant.quantize_(model)
    checkpoint.save(model, tokenizer, tmp_path)
    with pytest.raises(UsageError, match="quantized"):
        checkpoint.load_model(tmp_path, head="sequence", labels=("a", "b"))


def test_roberta_loses_the_positions_that_it_shifts_by(folders: dict[str, Path]) -> None:
    assert context_of(checkpoint.read_config(folders["Roberta"])) == 65
    assert context_of(checkpoint.read_config(folders["Bert"])) == 64
    assert context_of(checkpoint.read_config(folders["GPT2"])) == 64
    assert context_of({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}) == 512
