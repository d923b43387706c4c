"""Facts about int8 layers: rounding is within half a step, biases stay, dense layers can be had back."""

import pytest
import torch
from torch import nn

from catena.core.errors import DataError
from catena.models import quant


def test_rounding_error_is_at_most_half_a_step() -> None:
    weight = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    whole, scale = quant.quantize_weight(weight)
    assert whole.dtype == torch.int8
    assert scale.shape == (16, 1)
    assert ((whole.float() * scale - weight).abs() <= scale / 2 + 1e-7).all()


def test_zero_channel_stays_zero() -> None:
    whole, scale = quant.quantize_weight(torch.zeros(2, 4))
    assert whole.eq(0).all()
    assert torch.isfinite(scale).all()


def test_weights_that_are_not_finite_are_refused() -> None:
    with pytest.raises(DataError, match="not finite"):
        quant.quantize_weight(torch.tensor([[1.0, float("nan")]]))


def test_layer_with_bias_equals_its_dense_form() -> None:
    model = nn.Sequential(nn.Linear(8, 4, bias=True), nn.ReLU(), nn.Linear(4, 4, bias=False))
    inputs = torch.randn(3, 5, 8)
    assert quant.quantize_(model, ignore=["2"]) == ["0"]
    quantized = model(inputs)
    assert quant.dequantize_(model) == ["0"]
    assert torch.allclose(model(inputs), quantized, atol=1e-5)


def test_other_schemes_are_refused() -> None:
    settings = quant.settings_for("int8")
    assert quant.scheme_of(settings) == "int8"
    settings["config_groups"]["group_0"]["weights"]["num_bits"] = 4
    with pytest.raises(DataError, match="does not run"):
        quant.scheme_of(settings)
