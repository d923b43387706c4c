"""Facts about model folders: transformers loads them, damage and pickles are refused, headers tell the facts."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from catena.core.errors import DataError, NotFound
from catena.models import checkpoint, quant
from catena.models.presets import build
from catena.models.tokenizer import save_tokenizer, train_tokenizer

PROMPT = torch.tensor([[2, 40, 50, 60, 1, 3]])


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    target = tmp_path / "copy"
    shutil.copytree(folder, target)
    return target


def test_transformers_gives_equal_logits(folder: Path) -> None:
    ours, tokenizer = checkpoint.load(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        assert torch.equal(ours(PROMPT).logits, theirs(PROMPT).logits)
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == tokenizer.get_vocab()
    assert theirs.generation_config.eos_token_id == tokenizer.eos_token_id


def test_describe_reads_the_facts_from_headers(folder: Path) -> None:
    model, _ = checkpoint.load(folder)
    assert checkpoint.describe(folder) == {
        "architecture": "LlamaForCausalLM",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": "float32",
        "context": 128,
        "quantization": None,
    }


def test_int8_folder_loads_with_int8_layers_and_close_logits(folder: Path, tmp_path: Path) -> None:
    model, tokenizer = checkpoint.load(folder)
    with torch.no_grad():
        dense = model(PROMPT).logits
        quant.quantize_(model)
        kept = model(PROMPT).logits
    checkpoint.save(model, tokenizer, tmp_path)
    loaded, _ = checkpoint.load(tmp_path)
    assert isinstance(loaded.model.layers[0].mlp.up_proj, quant.Int8Linear)
    assert isinstance(loaded.lm_head, torch.nn.Linear)
    with torch.no_grad():
        again = loaded(PROMPT).logits
    assert torch.allclose(again, kept, atol=2e-3)
    assert (kept - dense).norm() / dense.norm() < 0.03
    facts = checkpoint.describe(tmp_path)
    assert facts["quantization"] == "int8"
    assert facts["parameters"] == checkpoint.describe(folder)["parameters"]


def test_int8_folder_of_the_4m_preset_is_below_045_of_float32(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["a b c"], 300)
    model = build("llama-4m", 4096, 0)
    checkpoint.save(model, tokenizer, tmp_path / "dense")
    quant.quantize_(model)
    checkpoint.save(model, tokenizer, tmp_path / "int8")
    dense, small = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("dense", "int8"))
    assert small / dense <= 0.45


def test_folder_without_weights_is_refused_with_a_hint(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    with pytest.raises(DataError, match="has no weights") as caught:
        checkpoint.load(copied)
    assert "safetensors" in caught.value.hint


def test_pickled_weights_are_refused(copied: Path) -> None:
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    with pytest.raises(DataError, match="pickle"):
        checkpoint.load(copied)


def test_truncated_weights_are_refused(copied: Path) -> None:
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot be loaded"):
        checkpoint.load(copied)
    with pytest.raises(DataError, match="damaged"):
        checkpoint.describe(copied)


def test_missing_tensor_is_refused_and_not_made_up(copied: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(copied / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"lacks 1 of the weights.*up_proj"):
        checkpoint.load(copied)


def test_code_brought_by_a_folder_does_not_run(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (copied / "config.json").write_text(json.dumps(config))
    (copied / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(DataError):
        checkpoint.load(copied)


def test_tokenizer_larger_than_the_model_is_refused(copied: Path) -> None:
    save_tokenizer(train_tokenizer([chr(0x4E00 + number) * 3 for number in range(300)] * 3, 700), copied)
    with pytest.raises(DataError, match="tokens, the model only"):
        checkpoint.load(copied)


def test_unknown_quantization_is_refused_by_name(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="gptq"):
        checkpoint.load(copied)


def test_absent_folder_and_broken_config(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        checkpoint.load(tmp_path / "absent")
    with pytest.raises(DataError, match=r"no config\.json"):
        checkpoint.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        checkpoint.load(tmp_path)
