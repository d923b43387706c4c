"""Export: files that other programs run, with equal logits where the other program is here (onnxruntime)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from catena.compress.export import ExportConfig, export
from catena.core.config import parse
from catena.core.errors import ConfigError, UsageError
from catena.core.stage import Context
from catena.core.types import ModelVersion
from catena.models import checkpoint
from catena.models.presets import Preset, build
from catena.models.tokenizer import train_tokenizer

TINY = Preset(family="llama", hidden=48, layers=1, feed_forward=64, heads=4, key_value_heads=2, context=64)


@pytest.fixture
def tiny(context: Context, tmp_path: Path) -> ModelVersion:
    """A decoder of two layers with weights large enough that its logits differ."""
    tokenizer = train_tokenizer(["one two three", "四 五 六"], 300)
    model = build(TINY, len(tokenizer), 3, end_id=tokenizer.eos_token_id)
    folder = tmp_path / "tiny"
    checkpoint.save(model, tokenizer, folder)
    return context.store.put_model(folder, license="CC0-1.0", **checkpoint.describe(folder))


def opened(folder: Path) -> Any:
    """Open a file in onnxruntime."""
    return onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])


def test_gguf_is_a_version_with_its_source_and_its_tokenizer(context: Context, model: ModelVersion) -> None:
    made = export(context, ExportConfig(type="q8_0"), model=model)
    assert (made.form, made.base, made.dtype, made.quantization) == ("gguf", model.digest, "q8_0", "q8_0")
    assert (made.license, made.context, made.parameters) == (model.license, model.context, model.parameters)
    assert made.labels == {"tokenizer": "exact"}
    assert {"model.gguf", "tokenizer.json", "config.json"} <= {file.path for file in made.files}
    assert made.size < 0.4 * model.size
    again = export(context, ExportConfig(type="q8_0"), model=model)
    assert again.digest == made.digest


def test_onnx_of_a_classifier_gives_its_logits(context: Context, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["one two three"], 300)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(tokenizer), num_labels=3, max_position_embeddings=64, **shape)
    bert = BertForSequenceClassification(config).eval()
    checkpoint.save(bert, tokenizer, tmp_path / "bert")
    stored = context.store.put_model(tmp_path / "bert", **checkpoint.describe(tmp_path / "bert"))
    made = export(context, ExportConfig(format="onnx"), model=stored)
    assert (made.form, made.base) == ("onnx", stored.digest)
    session = opened(context.store.checkout(made))
    assert [one.shape for one in session.get_inputs()] == [["batch", "tokens"]] * 2
    for batch, tokens in ((1, 1), (4, 33)):
        ids = torch.randint(5, len(tokenizer), (batch, tokens))
        mask = torch.ones_like(ids)
        mask[0, tokens // 2 + 1 :] = 0
        [found] = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        with torch.no_grad():
            wanted = bert(input_ids=ids, attention_mask=mask).logits
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)


def test_onnx_with_a_cache_generates_the_same_tokens(context: Context, tiny: ModelVersion) -> None:
    made = export(context, ExportConfig(format="onnx", cache=True), model=tiny)
    folder = context.store.checkout(made)
    session, model = opened(folder), checkpoint.load_model(context.store.checkout(tiny))
    model.generation_config.eos_token_id = None
    names = [one.name for one in session.get_inputs()]
    assert names[3:5] == ["past_key_values.0.key", "past_key_values.0.value"]
    prompt = torch.randint(5, 260, (2, 9))
    past = [np.zeros((2, 2, 0, 12), dtype=np.float32)] * 2
    ids, tokens = prompt.numpy(), []
    for _ in range(12):
        before = past[0].shape[2]
        positions = np.tile(np.arange(before, before + ids.shape[1]), (2, 1))
        mask = np.ones((2, before + ids.shape[1]), dtype=np.int64)
        logits, *past = session.run(None, dict(zip(names, [ids, mask, positions, *past], strict=True)))
        ids = logits[:, -1:].argmax(-1)
        tokens.append(ids)
    wanted = model.generate(prompt, max_new_tokens=12, do_sample=False)[:, 9:]
    np.testing.assert_array_equal(np.concatenate(tokens, 1), wanted.numpy())


def test_what_cannot_be_exported_is_refused(context: Context, model: ModelVersion, tmp_path: Path) -> None:
    adapter = model.model_copy(update={"form": "adapter"})
    with pytest.raises(UsageError, match="only a full model can be exported"):
        export(context, ExportConfig(), model=adapter)
    with pytest.raises(ConfigError, match="ONNX is written as f32, not q8_0"):
        parse(ExportConfig, {"format": "onnx", "type": "q8_0"})
