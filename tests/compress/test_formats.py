"""Every number format: what we store, plain `transformers` reads through compressed-tensors and computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from catena.core.errors import DataError, UsageError
from catena.models import checkpoint, quant
from catena.models.quant_float import fp8_values, pack_fp4, unpack_fp4
from catena.models.quant_int import DynamicInt8Linear, Int4Linear, pack_int4, unpack_int4

IDS = torch.arange(60).reshape(2, 30)
GROUP = 32


@pytest.fixture
def stored(model_folder: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The small model in a number format, on disk."""
    model, tokenizer = checkpoint.load(model_folder)
    quant.quantize_(model, scheme=request.param, group_size=GROUP)
    checkpoint.save(model, tokenizer, tmp_path / request.param)
    return tmp_path / request.param


def read_by_transformers(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@pytest.mark.filterwarnings("ignore")  # of the other package
@pytest.mark.parametrize("stored", list(quant.SCHEMES), indirect=True)
def test_transformers_gives_equal_logits(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # compressed-tensors 0.20 unpacks NVFP4 to bfloat16, whatever it is asked for.
    dtype = torch.bfloat16 if stored.name == "nvfp4" else torch.float32
    # It multiplies the rounded numbers as floats; ours are whole, exact, and round the next layer's inputs otherwise.
    monkeypatch.setattr(DynamicInt8Linear, "product", quant.PackedLinear.product)
    with torch.no_grad():
        ours = checkpoint.load_model(stored, dtype)(IDS).logits
        theirs = read_by_transformers(stored, dtype)(IDS).logits
    # int8 scales outputs instead of weights: another order of rounding in float32.
    assert torch.allclose(ours, theirs, rtol=0, atol=2e-5 if stored.name == "int8" else 0)


@pytest.mark.parametrize("stored", list(quant.SCHEMES), indirect=True)
def test_a_stored_format_says_what_it_is(stored: Path, model_folder: Path) -> None:
    facts = checkpoint.describe(stored)
    assert facts["quantization"] == stored.name
    assert facts["parameters"] == checkpoint.describe(model_folder)["parameters"]
    assert facts["dtype"] == {"int4": "int4", "nvfp4": "float4"}.get(stored.name, facts["dtype"])


def test_four_bits_take_a_seventh_of_float32(model_folder: Path) -> None:
    model, _ = checkpoint.load(model_folder)
    dense = sum(layer.weight.nbytes for layer in quant.linears(model).values())
    quant.quantize_(model, scheme="int4", group_size=128 // 4)
    layers = [layer for layer in model.modules() if isinstance(layer, Int4Linear)]
    packed = sum(layer.weight_packed.nbytes + layer.weight_scale.nbytes for layer in layers)
    assert packed <= dense / 7  # and so at most 1/3.5 of half precision


def test_packing_int4_and_back_changes_nothing() -> None:
    codes = torch.arange(-8, 8).repeat(3, 4).to(torch.int8)
    packed = pack_int4(codes)
    assert packed.shape == (3, 8)
    assert packed[0, 0] & 0xFFFFFFFF == 0x76543210
    assert torch.equal(unpack_int4(packed), codes)


def test_packing_is_that_of_compressed_tensors() -> None:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    codes = torch.randint(-8, 8, (5, 64), dtype=torch.int8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(pack_int4(codes), pack_to_int32(codes, 4))


def test_fp4_rounds_to_nearest_and_ties_to_even() -> None:
    values = torch.tensor([[0.0, 0.24, 0.25, 0.26, 0.75, -0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -5.1, 7.0, -0.1, 1.5, 6.0]])
    expected = [0.0, 0.0, 0.0, 0.5, 1.0, -1.0, 1.0, 2.0, 2.0, 4.0, 4.0, -6.0, 6.0, -0.0, 1.5, 6.0]
    assert unpack_fp4(pack_fp4(values)).div(2).tolist() == [expected]


def test_every_fp8_number_is_read_as_it_is() -> None:
    numbers = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn)
    numbers = numbers[numbers.float().isfinite()]
    assert torch.equal(fp8_values(numbers), numbers.float())


@pytest.mark.parametrize("scheme", list(quant.SCHEMES))
def test_a_layer_laid_out_for_float32_gives_the_same_bits(scheme: str) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(256, 64))
    quant.quantize_(model, scheme=scheme, group_size=GROUP)
    inputs = torch.randn(3, 256)
    before = model(inputs)
    quant.prepack_(model, torch.float32)
    assert torch.equal(model(inputs), before)


@pytest.mark.parametrize("scheme", list(quant.SCHEMES))
def test_zero_weights_stay_zero(scheme: str) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(32, 16))
    torch.nn.init.zeros_(model[0].weight)
    quant.quantize_(model, scheme=scheme, group_size=32)
    assert model[0].dense_weight().eq(0).all()


@pytest.mark.parametrize("scheme", list(quant.SCHEMES))
def test_weights_that_are_not_finite_are_refused(scheme: str) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(32, 16))
    with torch.no_grad():
        model[0].weight[3, 5] = float("inf")
    with pytest.raises(DataError, match="not finite"):
        quant.quantize_(model, scheme=scheme, group_size=32)


def test_a_group_that_does_not_divide_is_refused_with_those_that_do() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(96, 16), torch.nn.Linear(64, 16))
    with pytest.raises(UsageError, match="0 has 96 inputs, which groups of 64 do not divide") as caught:
        quant.quantize_(model, scheme="int4", group_size=64)
    assert "32, 16, 8" in caught.value.hint


def test_whole_number_products_are_exact() -> None:
    torch.manual_seed(0)
    layer = DynamicInt8Linear.from_linear(torch.nn.Linear(256, 64, bias=False))
    inputs = torch.randn(3, 5, 256)
    expected = functional.linear(layer.activations(inputs).double(), layer.dense_weight().double())
    assert torch.allclose(layer.product(inputs).double(), expected, atol=1e-5)


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_a_prepacked_layer_answers_as_before(scheme: str) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(256, 64))
    quant.quantize_(model, scheme=scheme, group_size=GROUP)
    for rows in (1, 7, 9):
        inputs = torch.randn(rows, 256, dtype=torch.bfloat16)
        before = model(inputs).float()
        quant.prepack_(model, torch.bfloat16)
        assert (model(inputs).float() - before).norm() <= 0.01 * before.norm()
