"""GGUF files: every tensor in its place and as it was, the tokenizer whole, and what cannot be said refused by name.

That llama.cpp itself gives the same answers is shown where it is built: tests/infer/test_llama_cpp.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers as t
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from catena.core.errors import UsageError
from catena.models import checkpoint
from catena.models.gguf.architectures import rope_factors
from catena.models.gguf.vocabulary import SPACED_TEMPLATE, vocabulary_of
from catena.models.gguf.write import write_folder
from catena.models.tokenizer import load_tokenizer, train_character_tokenizer, train_tokenizer

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
MAKE: dict[str, Callable[[int], Any]] = {
    "llama": lambda size: t.LlamaForCausalLM(t.LlamaConfig(vocab_size=size, attention_bias=True, **SHAPE)),
    "mistral": lambda size: t.MistralForCausalLM(t.MistralConfig(vocab_size=size, sliding_window=24, **SHAPE)),
    "qwen2": lambda size: t.Qwen2ForCausalLM(t.Qwen2Config(vocab_size=size, tie_word_embeddings=True, **SHAPE)),
    "qwen3": lambda size: t.Qwen3ForCausalLM(t.Qwen3Config(vocab_size=size, head_dim=32, **SHAPE)),
    "olmo2": lambda size: t.Olmo2ForCausalLM(t.Olmo2Config(vocab_size=size, **SHAPE)),
    "gemma2": lambda size: t.Gemma2ForCausalLM(
        t.Gemma2Config(vocab_size=size, head_dim=16, query_pre_attn_scalar=16, sliding_window=24, **SHAPE)
    ),
    "gpt2": lambda size: t.GPT2LMHeadModel(
        t.GPT2Config(
            vocab_size=size, n_embd=64, n_layer=2, n_head=4, n_positions=128, bos_token_id=None, eos_token_id=1
        )
    ),
}
Save = Callable[..., Path]


@pytest.fixture(scope="session")
def small() -> Any:
    """A tokenizer of all bytes with few merges."""
    return train_tokenizer(["the quick brown fox 你好世界 " * 20], 320)


@pytest.fixture
def saved(small: Any, tmp_path: Path) -> Save:
    """Return a function that saves a tiny model of a family."""

    def make(family: str, tokenizer: Any = small, **changes: Any) -> Path:
        torch.manual_seed(4)
        model = MAKE[family](len(tokenizer) + 3)  # more rows than tokens, as models have them
        folder = tmp_path / family
        checkpoint.save(model, tokenizer, folder)
        if changes:
            path = folder / "config.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        return folder

    return make


def read(file: Path) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """Return the keys and the tensors (as float32) of a file, by the package that others read it with."""
    reader = gguf.GGUFReader(file)
    values = {key: field.contents() for key, field in reader.fields.items()}
    return values, {one.name: gguf.dequantize(one.data, one.tensor_type) for one in reader.tensors}


@pytest.mark.parametrize("family", MAKE)
def test_every_tensor_is_there_and_its_numbers_are_the_models(saved: Save, tmp_path: Path, family: str) -> None:
    folder = saved(family)
    written = write_folder(folder, tmp_path / "out", "f32")
    values, tensors = read(written.file)
    stored = dict(checkpoint.load_model(folder).named_parameters())
    assert len(tensors) == written.tensors == len(stored)
    shift = 1.0 if family == "gemma2" else 0.0
    for own, name in (("model.norm", "output_norm"), ("model.embed_tokens", "token_embd")):
        if f"{own}.weight" in stored:
            wanted = stored[f"{own}.weight"].detach().numpy() + (shift if own.endswith("norm") else 0)
            np.testing.assert_array_equal(tensors[f"{name}.weight"], wanted)
    total = sum(float(np.abs(one.astype(np.float64)).sum()) for name, one in tensors.items() if "norm" not in name)
    kept = sum(float(one.detach().double().abs().sum()) for name, one in stored.items() if not is_norm(name))
    assert total == pytest.approx(kept, rel=1e-9)
    arch = values["general.architecture"]
    assert values[f"{arch}.block_count"] == 2
    assert values[f"{arch}.context_length"] == (24 if family == "mistral" else 128)
    assert values["general.file_type"] == 0


def is_norm(name: str) -> bool:
    return "norm" in name or ".ln_" in name


def test_rotary_pairs_become_neighbours(saved: Save, tmp_path: Path) -> None:
    folder = saved("llama")
    _, tensors = read(write_folder(folder, tmp_path / "out", "f32").file)
    own = checkpoint.load_model(folder).model.layers[1].self_attn
    for layer, name, heads in ((own.q_proj, "attn_q", 4), (own.k_proj, "attn_k", 2)):
        for part, wanted in (("weight", layer.weight), ("bias", layer.bias)):
            rows = wanted.detach().reshape(heads, 16, *wanted.shape[1:])
            pairs = torch.stack([rows[:, :8], rows[:, 8:]], dim=2).reshape(wanted.shape)
            np.testing.assert_array_equal(tensors[f"blk.1.{name}.{part}"], pairs.numpy())


def test_gpt2s_matrices_are_turned(saved: Save, tmp_path: Path) -> None:
    folder = saved("gpt2")
    _, tensors = read(write_folder(folder, tmp_path / "out", "f32").file)
    own = checkpoint.load_model(folder).transformer.h[0]
    np.testing.assert_array_equal(tensors["blk.0.ffn_up.weight"], own.mlp.c_fc.weight.detach().numpy().T)
    np.testing.assert_array_equal(tensors["blk.0.attn_qkv.weight"], own.attn.c_attn.weight.detach().numpy().T)


@pytest.mark.parametrize(
    ("kind", "bits", "error"), [("f16", 16, 1e-3), ("bf16", 16, 5e-3), ("q8_0", 8.5, 0.01), ("q4_0", 4.5, 0.12)]
)
def test_smaller_formats_are_smaller_and_near(
    saved: Save, tmp_path: Path, kind: Any, bits: float, error: float
) -> None:
    folder = saved("qwen3")
    file = write_folder(folder, tmp_path / "out", kind).file
    [tensor] = [one for one in gguf.GGUFReader(file).tensors if one.name == "blk.0.ffn_up.weight"]
    assert tensor.n_bytes * 8 == bits * tensor.n_elements
    wanted = checkpoint.load_model(folder).model.layers[0].mlp.up_proj.weight.detach().numpy()
    found = gguf.dequantize(tensor.data, tensor.tensor_type)
    assert np.linalg.norm(found - wanted) < error * np.linalg.norm(wanted)
    norms = [one for one in gguf.GGUFReader(file).tensors if "norm" in one.name]
    assert {one.tensor_type for one in norms} == {gguf.GGMLQuantizationType.F32}


def test_the_tokenizer_is_whole(saved: Save, tmp_path: Path, small: Any) -> None:
    values, _ = read(write_folder(saved("qwen2"), tmp_path / "out").file)
    tokens = values["tokenizer.ggml.tokens"]
    assert tokens[: len(small)] == small.convert_ids_to_tokens(list(range(len(small))))
    assert tokens[len(small) :] == [f"[PAD{len(small) + number}]" for number in range(3)]
    assert values["tokenizer.ggml.token_type"][:6] == [3, 3, 3, 3, 3, 1]
    assert values["tokenizer.ggml.token_type"][-3:] == [5, 5, 5]
    assert (values["tokenizer.ggml.model"], values["tokenizer.ggml.pre"]) == ("gpt2", "qwen2")
    assert (values["tokenizer.ggml.eos_token_id"], values["tokenizer.ggml.padding_token_id"]) == (1, 0)
    assert (values["tokenizer.ggml.add_bos_token"], values["tokenizer.ggml.add_space_prefix"]) == (False, True)
    assert values["tokenizer.chat_template"] == SPACED_TEMPLATE
    assert (tmp_path / "out" / "tokenizer.json").exists()


def test_the_template_writes_the_space_that_the_tokenizer_puts_before_a_text(small: Any) -> None:
    from jinja2 import Environment

    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]
    text = Environment().from_string(SPACED_TEMPLATE).render(messages=messages, add_generation_prompt=True)
    assert text == "<|user|> a<|end|><|assistant|><|end|><|assistant|>"


def test_names_are_cut_as_nearly_as_can_be_said(saved: Save, tmp_path: Path) -> None:
    names = train_tokenizer(["os.path.join(a, b) " * 20], 320, pattern="names")
    written = write_folder(saved("llama", names), tmp_path / "out")
    assert not written.exact_tokenizer
    assert read(written.file)[0]["tokenizer.ggml.pre"] == "superbpe"


def test_sentencepiece_is_written_with_its_merges_as_scores() -> None:
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "<0x0A>": 3, "▁": 4, "a": 5, "b": 6, "▁a": 7, "▁ab": 8}
    merges = [("▁", "a"), ("▁a", "b")]
    backend = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = t.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    found = vocabulary_of(tokenizer, 9)
    assert (found.model, found.spaced, found.exact) == ("llama", True, True)
    assert found.types == [2, 3, 3, 6, 1, 1, 1, 1, 1]
    assert found.scores[7:] == [0.0, -1.0]
    assert found.scores[4:7] == [-2.0] * 3


def test_plain_byte_level_is_gpt2s_cut() -> None:
    backend = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found = vocabulary_of(t.PreTrainedTokenizerFast(tokenizer_object=backend), 2)
    assert (found.model, found.cut, found.exact, found.spaced) == ("gpt2", "gpt-2", True, False)


def test_llama3s_stretched_frequencies_are_those_of_transformers() -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {
        **{"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0},
        **{"high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    }
    config = t.LlamaConfig(vocab_size=300, rope_parameters=rope, head_dim=64, **SHAPE)
    factors = rope_factors(json.loads(config.to_json_string(use_diff=False)))
    assert factors is not None
    wanted, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 500000.0 ** (-np.arange(0, 64, 2) / 64)
    np.testing.assert_allclose(plain / factors, wanted.numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llama", {"architectures": ["PhiForCausalLM"]}, "a PhiForCausalLM cannot be written as GGUF here"),
        ("llama", {"quantization_config": {"quant_method": "x"}}, "the model is quantized already"),
        ("llama", {"local_global": {"window": 8}}, "llama.cpp has no local_global attention"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
            "no rope scaling of the type 'dynamic'",
        ),
        ("gemma2", {"query_pre_attn_scalar": 99}, "query_pre_attn_scalar differs"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    saved: Save, tmp_path: Path, family: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        write_folder(saved(family, **changes), tmp_path / "out")
    assert not (tmp_path / "out" / "model.gguf").exists()


def test_a_tokenizer_of_characters_is_refused(saved: Save, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no tokenizer of the kind WordLevel"):
        write_folder(saved("llama", train_character_tokenizer(["abc"])), tmp_path / "out")


def test_writing_twice_gives_the_same_bytes(saved: Save, tmp_path: Path) -> None:
    folder = saved("qwen3")
    first = write_folder(folder, tmp_path / "a", "q8_0").file.read_bytes()
    assert first == write_folder(folder, tmp_path / "b", "q8_0").file.read_bytes()


def test_a_qwen2_folder_keeps_its_own_tokenizer(saved: Save, small: Any) -> None:
    """`AutoTokenizer` would take Qwen's class for it, with a token more and without the space before a text."""
    loaded = load_tokenizer(saved("qwen2"))
    assert len(loaded) == len(small)
    text = "the fox\n你好 <|end|> 42"
    assert loaded(text)["input_ids"] == small(text)["input_ids"]
