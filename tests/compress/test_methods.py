"""What each method is for: it errs less than the plainer one on inputs like those it was made for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from catena.compress import awq, folds, smooth, solver, zeros
from catena.compress.blocks import Block, Measured, walk
from catena.models.quant_int import DynamicInt8Linear, group_scale, quantize_weight

GROUP = 32


def correlated(seed: int = 0, size: int = 64, outliers: int = 0) -> tuple[Tensor, Measured, Tensor]:
    """Return a weight [48, size], inputs that depend on one another, and these inputs themselves."""
    random = torch.Generator().manual_seed(seed)
    inputs = torch.randn(512, size // 4, generator=random) @ torch.randn(size // 4, size, generator=random)
    inputs += 0.3 * torch.randn(512, size, generator=random)
    spread = torch.arange(outliers) * (size // 4)
    inputs[:, spread] *= 30
    measured = Measured.empty(size)
    measured.add(inputs[:200])
    measured.add(inputs[200:])
    return torch.randn(48, size, generator=random), measured, inputs


def error(weight: Tensor, other: Tensor, inputs: Tensor) -> float:
    return float((inputs @ (other - weight).T).square().sum(dim=1).mean())


def test_moments_are_those_of_all_inputs_and_tell_the_error() -> None:
    weight, measured, inputs = correlated()
    assert torch.allclose(measured.gram, inputs.T @ inputs / len(inputs), rtol=1e-4, atol=1e-3)
    assert torch.allclose(measured.mean, inputs.abs().mean(dim=0), rtol=1e-4)
    assert torch.equal(measured.largest, inputs.abs().amax(dim=0))
    other = weight + 0.1
    assert awq.output_error(other - weight, measured.gram) == pytest.approx(error(weight, other, inputs), rel=1e-3)


def test_gptq_errs_less_than_rounding_to_nearest() -> None:
    weight, measured, inputs = correlated()
    nearest = awq.rounded(weight, group_scale(weight, GROUP))
    codes, scale = solver.gptq_groups(weight, measured.gram, GROUP)
    assert codes.abs().max() <= 8
    assert scale.shape == (48, 2)
    solved = codes * scale.float().repeat_interleave(GROUP, dim=1)
    assert error(weight, solved, inputs) < 0.6 * error(weight, nearest, inputs)


def test_gptq_in_8_bits_errs_less_too() -> None:
    weight, measured, inputs = correlated()
    codes, scale = quantize_weight(weight)
    nearest = error(weight, codes * scale, inputs)
    codes, scale = solver.gptq_channels(weight, measured.gram)
    assert error(weight, codes * scale, inputs) < 0.7 * nearest


def test_groups_may_lie_across_the_solver_s_own_stretches() -> None:
    weight, measured, inputs = correlated(size=288)
    nearest = awq.rounded(weight, group_scale(weight, 96))
    codes, scale = solver.gptq_groups(weight, measured.gram, 96)
    solved = codes * scale.float().repeat_interleave(96, dim=1)
    assert error(weight, solved, inputs) < 0.6 * error(weight, nearest, inputs)


def test_inputs_that_never_come_are_no_obstacle() -> None:
    weight, measured, _ = correlated()
    measured.gram[:, 5] = measured.gram[5] = 0
    codes, _ = solver.gptq_groups(weight, measured.gram, GROUP)
    assert codes[:, 5].eq(0).all()


def test_awq_scales_and_cuts_err_less_than_rounding_to_nearest() -> None:
    weight, measured, inputs = correlated(outliers=3)
    nearest = error(weight, awq.rounded(weight, group_scale(weight, GROUP)), inputs)
    scale = awq.best_scale([weight], measured, GROUP)
    assert set(scale.topk(3).indices.tolist()) == {0, 16, 32}
    larger = weight * scale
    scaled = error(weight, awq.rounded(larger, group_scale(larger, GROUP)) / scale, inputs)
    cut = error(weight, awq.rounded(weight, awq.best_cut(weight, measured.gram, GROUP)), inputs)
    assert scaled < 0.7 * nearest
    assert cut <= nearest


def test_smoothquant_errs_less_than_plain_w8a8_where_inputs_have_outliers() -> None:
    weight, measured, inputs = correlated(outliers=2)
    expected = inputs @ weight.T

    def answer(weight: Tensor, inputs: Tensor) -> Tensor:
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linear.weight.data = weight
        return DynamicInt8Linear.from_linear(linear).product(inputs)

    scale = smooth.smooth_scale([weight], measured.largest, 0.5)
    plain = (answer(weight, inputs) - expected).norm()
    assert (answer(weight * scale, inputs / scale) - expected).norm() < 0.5 * plain


@pytest.mark.parametrize("group", [None, (2, 4)])
def test_wanda_errs_less_than_magnitude_and_sparsegpt_less_than_wanda(group: tuple[int, int] | None) -> None:
    weight, measured, inputs = correlated(outliers=4)
    magnitude = zeros.by_magnitude(weight, 0.5, group)
    wanda = weight * zeros.kept(zeros.wanda_score(weight, measured), 0.5, group)
    sparsegpt = zeros.by_sparsegpt(weight, measured.gram, 0.5, group)
    for pruned in (magnitude, wanda, sparsegpt):
        assert float((pruned == 0).float().mean()) == pytest.approx(0.5, abs=0.01)
        if group:
            assert pruned.view(48, -1, 4).ne(0).sum(dim=2).eq(2).all()
    first, second, third = (error(weight, pruned, inputs) for pruned in (magnitude, wanda, sparsegpt))
    assert third < second < first


FOLDS = {
    "llama": {("input_layernorm", 3), ("post_attention_layernorm", 2), ("v_proj", 1), ("up_proj", 1)},
    "qwen3": {("input_layernorm", 3), ("post_attention_layernorm", 2), ("up_proj", 1)},
    "gemma3": {("input_layernorm", 3), ("pre_feedforward_layernorm", 2), ("up_proj", 1)},
    "phi3": {("input_layernorm", 1), ("post_attention_layernorm", 1)},
    "opt": {("self_attn_layer_norm", 3), ("final_layer_norm", 1), ("v_proj", 1), ("fc1", 1)},
    "olmo2": {("v_proj", 1), ("up_proj", 1)},
}


def small(kind: str) -> Any:
    import transformers as t

    common: dict[str, Any] = {
        "vocab_size": 128,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "pad_token_id": 0,
    }
    rotary = {**common, "intermediate_size": 48, "num_key_value_heads": 4}
    torch.manual_seed(0)
    made: dict[str, Any] = {
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**rotary)),
        "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**{**rotary, "num_key_value_heads": 2, "head_dim": 8})),
        "gemma3": lambda: t.Gemma3ForCausalLM(
            t.Gemma3TextConfig(**{**rotary, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8})
        ),
        "phi3": lambda: t.Phi3ForCausalLM(t.Phi3Config(**rotary)),
        "opt": lambda: t.OPTForCausalLM(t.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
        "olmo2": lambda: t.Olmo2ForCausalLM(t.Olmo2Config(**rotary)),
    }
    model = made[kind]().eval()
    for parameter in model.parameters():  # norms of ones and biases of zeros would hide mistakes
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model


@pytest.mark.parametrize("kind", list(FOLDS))
def test_factors_are_folded_where_the_model_computes_the_same(kind: str) -> None:
    model, rows = small(kind), torch.randint(1, 128, (3, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model(input_ids=rows).logits
    for block in walk(model, rows):
        found = folds.find(block)
        assert {(fold.source.rpartition(".")[2], len(fold.layers)) for fold in found} == FOLDS[kind]
        for fold in found:
            size = block.linears()[fold.layers[0]].in_features
            fold.apply_(block.module, torch.rand(size, generator=torch.Generator().manual_seed(2)) + 0.5)
    with torch.no_grad():
        after = model(input_ids=rows).logits
    assert torch.allclose(after, before, rtol=1e-3, atol=1e-4)


def test_blocks_are_walked_with_the_arguments_that_the_model_gives_them() -> None:
    model, rows = small("gemma3"), torch.randint(1, 128, (3, 24), generator=torch.Generator().manual_seed(1))
    last: list[Block] = list(walk(model, rows))
    with torch.no_grad():
        expected = model.model(input_ids=rows).last_hidden_state
        assert torch.allclose(model.model.norm(last[-1].once()), expected, atol=1e-5)
