"""Facts about local_global attention: the masked dense product, in blocks, packed, padded, cached and reloaded."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM

from catena.core.errors import ConfigError, DataError, UsageError
from catena.models import checkpoint
from catena.models.attention import flex_rule, use_local_global
from catena.models.attention_blocks import blocked_attention, dense_mask, documents_of
from catena.models.attention_settings import LocalGlobal
from catena.models.presets import build, preset

DECODERS = ("llama-nano", "qwen3-nano", "gpt2-nano")
VOCABULARY = 300


def decoder(name: str, seed: int = 3) -> Any:
    return build(preset(name).model_copy(update={"context": 1024}), VOCABULARY, seed).eval()


@cache
def visible(numbers: tuple[int, ...], window: int, memory: int) -> Tensor:
    """The pattern of one row by its definition: `numbers` has the document of each token, 0 for padding."""
    length = len(numbers)
    mask = torch.eye(length, dtype=torch.bool)
    for query in range(length):
        for key in range(query + 1):
            if numbers[query] == numbers[key] != 0:
                start = numbers.index(numbers[query])
                mask[query, key] |= query - key < window or key - start < memory
    return mask


def rows(length: int, batch: int = 2) -> Tensor:
    return torch.randint(0, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(length))


def outputs(model: Any, ids: Tensor, weights: Tensor, **more: Any) -> tuple[Tensor, list[Tensor]]:
    """Return the hidden states at real tokens, and the gradients of a loss over them."""
    model.zero_grad()
    hidden = model.get_decoder()(input_ids=ids, use_cache=False, **more).last_hidden_state * weights[..., None]
    hidden.square().sum().div(weights.sum()).backward()
    return hidden.detach(), [item.grad.clone() for item in model.parameters() if item.grad is not None]


def assert_same(model: Any, ids: Tensor, numbers: list[list[int]], settings: LocalGlobal, **more: Any) -> None:
    """Compare with the same model under `sdpa` and the pattern as a 4-D mask."""
    real = torch.tensor(numbers).gt(0).float()
    mask = torch.stack([visible(tuple(row), settings.window, settings.memory) for row in numbers])[:, None]
    model.set_attn_implementation("sdpa")
    places = {name: more[name] for name in more if name == "position_ids"}
    wanted, slopes = outputs(model, ids, real, attention_mask=mask, **places)
    use_local_global(model, settings)
    found, own = outputs(model, ids, real, **more)
    assert (found - wanted).abs().max() < 1e-5
    assert all((one - other).abs().max() < 1e-4 for one, other in zip(own, slopes, strict=True))


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize(("length", "window", "memory"), [(5, 8, 2), (150, 16, 0), (333, 48, 5), (449, 64, 70)])
def test_a_decoder_gives_what_masked_dense_attention_gives(name: str, length: int, window: int, memory: int) -> None:
    settings = LocalGlobal(window=window, memory=memory)
    assert_same(decoder(name), rows(length), [[1] * length] * 2, settings)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("length", [90, 333])
def test_packed_documents_do_not_see_each_other(name: str, length: int) -> None:
    cuts = [(length // 9, length // 2), (length // 2 + 1, length // 2 + 3)]
    numbers = [[1] * one + [2] * (two - one) + [3] * (length - two) for one, two in cuts]
    places = torch.tensor([[*range(one), *range(two - one), *range(length - two)] for one, two in cuts])
    assert_same(decoder(name), rows(length), numbers, LocalGlobal(window=24, memory=4), position_ids=places)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("length", [90, 333])
def test_padding_is_seen_by_nobody_on_either_side(name: str, length: int) -> None:
    numbers = [[0] * (length // 3) + [1] * (length - length // 3), [1] * (length - 7) + [0] * 7]
    padding = torch.tensor(numbers)
    settings = LocalGlobal(window=24, memory=4)
    assert_same(decoder(name), rows(length), numbers, settings, attention_mask=padding)


def test_what_stands_in_the_padding_changes_nothing() -> None:
    model = use_local_global(decoder("llama-nano"), LocalGlobal(window=16, memory=2))
    ids, padding = rows(300), torch.ones(2, 300, dtype=torch.long)
    padding[:, :50] = 0
    other = ids.clone()
    other[:, :50] = 7
    with torch.no_grad():
        first, second = (model(input_ids=item, attention_mask=padding).logits[:, 50:] for item in (ids, other))
    assert torch.equal(first, second)


def test_blocks_and_one_product_are_the_same_function_across_the_crossover() -> None:
    settings = LocalGlobal(window=16, memory=3)
    model = use_local_global(decoder("llama-nano"), settings)
    ids = rows(settings.crossover + 1)
    with torch.no_grad():
        blocks, one = model(input_ids=ids).logits, model(input_ids=ids[:, :-1]).logits
    assert torch.allclose(blocks[:, :-1], one, atol=1e-5)


@pytest.mark.parametrize("padded", [False, True])
def test_generation_with_a_cache_chooses_the_tokens_that_whole_passes_choose(padded: bool) -> None:
    model = use_local_global(decoder("llama-nano"), LocalGlobal(window=16, memory=3))
    ids = rows(230)
    padding = torch.ones_like(ids)
    if padded:
        padding[0, :40] = 0
    chosen = model.generate(ids, attention_mask=padding, max_new_tokens=12, do_sample=False, pad_token_id=0)
    for row in range(2):
        tokens = ids[row][padding[row].bool()]
        for token in chosen[row, 230:]:
            with torch.no_grad():
                wanted = model(input_ids=tokens[None]).logits[0, -1].argmax()
            assert token == wanted
            tokens = torch.cat([tokens, wanted[None]])


def test_a_chunk_beside_a_cache_gives_the_logits_of_the_whole() -> None:
    model = use_local_global(decoder("qwen3-nano"), LocalGlobal(window=16, memory=3))
    ids = rows(260)
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits
        first = model(input_ids=ids[:, :210], use_cache=True)
        second = model(input_ids=ids[:, 210:], past_key_values=first.past_key_values).logits
    assert torch.allclose(second, whole[:, 210:], atol=1e-5)


def test_a_static_cache_gives_the_tokens_of_a_growing_one() -> None:
    model = use_local_global(decoder("llama-nano"), LocalGlobal(window=16, memory=3))
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "disable_compile": True}
    ids = rows(40)
    wanted = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    found = model.generate(ids, attention_mask=torch.ones_like(ids), cache_implementation="static", **options)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("memory", [0, 8])
def test_only_memory_carries_a_beginning_over_more_windows_than_layers(memory: int) -> None:
    # Layer by layer something may be passed on from window to window; two layers reach 2 x 15 tokens, these are 200.
    model = use_local_global(decoder("llama-nano"), LocalGlobal(window=16, memory=memory))
    ids = rows(208)
    other = ids.clone()
    other[:, :8] = (other[:, :8] + 1) % VOCABULARY
    with torch.no_grad():
        first, second = (model(input_ids=item).logits[:, -8:] for item in (ids, other))
    assert torch.equal(first, second) == (memory == 0)


def test_every_row_of_blocks_equals_the_dense_product() -> None:
    generator = torch.Generator().manual_seed(1)
    for length, window, memory, shape in [
        (1, 1, 0, "one"),
        (130, 1, 3, "holes"),
        (257, 70, 16, "many"),
        (200, 7, 90, "many"),
    ]:
        numbers = torch.ones(2, length, dtype=torch.long)
        if shape == "holes":
            numbers[0, 40:50] = 0
        if shape == "many":
            numbers += torch.rand(2, length, generator=generator).lt(0.05).cumsum(dim=1)
        settings, documents = LocalGlobal(window=window, memory=memory), documents_of(numbers)
        query = torch.randn(2, 4, length, 16, generator=generator)
        key, value = (torch.randn(2, 2, length, 16, generator=generator) for _ in range(2))
        mask = dense_mask(settings, torch.arange(length), length, documents)
        wanted = scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
        found = blocked_attention(query, key, value, settings, documents)
        assert ((found - wanted) * numbers.gt(0)[:, None, :, None]).abs().max() < 1e-5


def test_the_rule_for_flex_attention_is_the_same_pattern() -> None:
    settings, length = LocalGlobal(window=5, memory=3), 40
    numbers = torch.tensor([[0] * 4 + [1] * 36, [1] * 9 + [2] * 20 + [3] * 11])
    for documents in (None, documents_of(numbers)):
        rule = flex_rule(settings, documents)
        found = create_mask(rule, 2, 1, length, length, device="cpu")
        assert torch.equal(found, dense_mask(settings, torch.arange(length), length, documents).expand(2, -1, -1, -1))


def test_a_saved_model_attends_the_same_when_it_is_loaded(tokenizer: Any, tmp_path: Path) -> None:
    model = use_local_global(build("llama-nano", len(tokenizer), 1).eval(), LocalGlobal(window=8, memory=2))
    ids = rows(100) % len(tokenizer)
    checkpoint.save(model, tokenizer, tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["local_global"] == {"window": 8, "memory": 2}
    loaded, _ = checkpoint.load(tmp_path)
    dense = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        wanted, found, other = (item(input_ids=ids).logits for item in (model, loaded, dense))
    assert torch.equal(found, wanted)
    assert torch.allclose(other[:, :8], wanted[:, :8], atol=1e-5)  # plain transformers attends densely
    assert not torch.allclose(other[:, 40:], wanted[:, 40:], atol=1e-2)


def test_damaged_settings_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    checkpoint.save(build("llama-nano", len(tokenizer), 1), tokenizer, tmp_path)
    path = tmp_path / "config.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({**stored, "local_global": {"window": 0}}))
    with pytest.raises(ConfigError, match="window"):
        checkpoint.load(tmp_path)
    path.write_text(json.dumps({**stored, "local_global": "yes"}))
    with pytest.raises(DataError, match="not a mapping"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "why"), [("bert-nano", "not a decoder"), ("modernbert-nano", "not a decoder"), ("t5-nano", "encoder")]
)
def test_other_architectures_are_refused_with_a_reason(name: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        use_local_global(build(name, VOCABULARY, 0), LocalGlobal())


def test_a_decoder_with_windows_of_its_own_is_refused() -> None:
    model = build("qwen3-nano", VOCABULARY, 0)
    model.config.layer_types = ["sliding_attention", "full_attention"]
    with pytest.raises(UsageError, match="pattern of their own"):
        use_local_global(model, LocalGlobal())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_flex_attention_gives_what_the_blocks_give() -> None:
    settings, length = LocalGlobal(window=128, memory=16), 1500
    generator = torch.Generator().manual_seed(1)
    model = build(preset("llama-nano").model_copy(update={"context": 2048}), VOCABULARY, 3).eval()
    ids = torch.randint(0, VOCABULARY, (2, length), generator=generator)
    use_local_global(model, settings)
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
        found = model.cuda()(input_ids=ids.cuda()).logits.cpu()
    assert (found - wanted).abs().max() < 1e-2
