"""Linear layers in the processor's own layout: the same numbers, and the rows where a model asks for them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from catena.core.errors import ConfigError
from catena.core.generate import Request, SamplingParams
from catena.infer import linears
from catena.infer.engine import Engine, open_engine
from catena.models import native
from catena.models.checkpoint import save

from .architectures import build
from .test_parity import Numbers

blocked = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bfloat16 on this processor"
)
compiled = pytest.mark.skipif(native.library() is None and not os.environ.get("CI"), reason="no C compiler here")


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay out every layer, whatever its size and whatever was measured."""
    monkeypatch.setattr(linears, "SMALLEST", 1)
    monkeypatch.setattr(linears, "blocks_pay", lambda: True)


@blocked
@pytest.mark.parametrize("rows", [1, 3, 16, 200])
@pytest.mark.parametrize("bias", [False, True])
def test_a_blocked_layer_gives_what_the_layer_gave(rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(96, 160, bias=bias, dtype=torch.bfloat16)
    inputs = torch.randn(1, rows, 96, dtype=torch.bfloat16)
    with torch.inference_mode():
        exact = functional.linear(inputs.float(), linear.weight.float(), linear.bias.float() if bias else None)
        found = linears.BlockedLinear(linear)(inputs)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, atol=0.02, rtol=0.01)


@compiled
def test_float32_is_laid_out_where_torch_is_not_clearly_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "wins_at_many", lambda _: False)
    assert linears.prepare_(build("llama")) == []
    assert linears.prepare_(build("llama").half()) == []
    monkeypatch.setattr(native, "wins_at_many", lambda _: True)
    changed = linears.prepare_(build("llama"))
    assert changed == [f"model.layers.{layer}.mlp.down_proj" for layer in range(2)], (
        "the others have 48 inputs, no whole panel"
    )


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        pytest.param(linears.BlockedLinear, torch.bfloat16, marks=blocked),
        pytest.param(linears.PanelLinear, torch.bfloat16, marks=compiled),
        pytest.param(linears.PanelLinear, torch.float32, marks=compiled),
    ],
)
def test_a_layer_whose_rows_are_looked_at_has_them_from_then_on(kind: Any, dtype: torch.dtype) -> None:
    linear = nn.Linear(96, 160, dtype=dtype)
    layer, inputs = kind(linear), torch.randn(3, 96, dtype=dtype)
    with torch.inference_mode():
        before = layer(inputs)
        assert torch.equal(layer.weight, linear.weight)
        assert layer.weight is layer.weight, "they are made once"
        torch.testing.assert_close(layer(inputs), before)
    assert getattr(layer, "panels", None) is None
    assert getattr(layer, "_blocks", None) is None


@blocked
def test_bfloat16_is_laid_out(always: None) -> None:
    model = build("llama").to(torch.bfloat16)
    names = linears.prepare_(model)
    assert "lm_head" in names
    assert not any(type(layer) is nn.Linear for layer in model.modules())


@blocked
def test_an_engine_of_bfloat16_answers_as_likely_as_the_plain_model(always: None) -> None:
    def told(model: Any) -> list[float]:
        engine = Engine(model, Numbers())
        request = Request("a", list(range(2, 60)), SamplingParams(max_tokens=0))
        found = next(iter(engine.score([request]))).logprobs
        engine.close()
        return list(found)

    plain = told(build("llama"))
    blocked = told(build("llama").to(torch.bfloat16))
    assert sum(blocked) / len(blocked) == pytest.approx(sum(plain) / len(plain), abs=0.2)


def test_folders_are_computed_with_as_they_are_stored(
    tokenizer: Any, model_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linears, "fastest", lambda: (torch.bfloat16, 1))
    save(model_of(), tokenizer, tmp_path / "single")
    save(model_of().to(torch.bfloat16), tokenizer, tmp_path / "half")
    assert linears.dtype_for(tmp_path / "single", "auto") == torch.float32
    assert linears.dtype_for(tmp_path / "single", "bfloat16") == torch.bfloat16
    assert linears.dtype_for(tmp_path / "half", "auto") == torch.bfloat16
    monkeypatch.setattr(linears, "fastest", lambda: (torch.float32, 1))
    assert linears.dtype_for(tmp_path / "half", "auto") == torch.float32
    engine = open_engine(tmp_path / "half", precision="bfloat16")
    assert engine.runner.layout.dtype == torch.bfloat16
    assert next(iter(engine.generate([Request("a", "the", SamplingParams(max_tokens=3))]))).token_ids
    engine.close()
    with pytest.raises(ConfigError, match="precision"):
        open_engine(tmp_path / "half", precision="float8")
