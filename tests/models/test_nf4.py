"""Facts about frozen 4-bit layers: the levels are those of the paper, little memory, and gradients flow through."""

import pytest
import torch
from scipy.stats import norm
from torch import nn

from catena.core.errors import DataError
from catena.models import nf4
from catena.models.nf4 import NF4Linear, freeze_, round_, weight_bytes
from catena.models.quant import Int8Linear


def linear(out: int, inner: int, seed: int = 0, *, bias: bool = False) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(inner, out, bias=bias)


def test_levels_are_the_quantiles_of_the_paper() -> None:
    offset = 0.9677083
    above = norm.ppf(torch.linspace(offset, 0.5, 9)[:-1].numpy())
    below = -norm.ppf(torch.linspace(offset, 0.5, 8)[:-1].numpy())
    levels = torch.tensor(sorted([*above, 0.0, *below])).float()
    assert torch.allclose(levels / levels.max(), torch.tensor(nf4.LEVELS), atol=1e-6)


def test_each_number_is_the_nearest_level_of_its_block_up_to_the_rounding_of_magnitudes() -> None:
    dense = linear(96, 130)  # blocks cross the rows, and the last one is not full
    found = NF4Linear(dense).dense_weight()
    blocks = nn.functional.pad(dense.weight.detach().flatten(), (0, -96 * 130 % 64)).view(-1, 64)
    shares = blocks / blocks.abs().amax(dim=1, keepdim=True)
    levels = torch.tensor(nf4.LEVELS)
    nearest = levels[(shares[..., None] - levels).abs().argmin(dim=-1)] * blocks.abs().amax(dim=1, keepdim=True)
    assert torch.allclose(found.flatten(), nearest.flatten()[: 96 * 130], atol=2e-4)


def test_weight_takes_little_more_than_four_bits_a_number() -> None:
    layer = NF4Linear(linear(512, 1024))
    stored = sum(tensor.nbytes for name, tensor in layer.named_buffers() if name != "pairs")
    assert 8 * stored / (512 * 1024) < 4.14


def test_zero_weight_stays_zero_and_what_is_not_finite_is_refused() -> None:
    dense = linear(4, 64)
    nn.init.zeros_(dense.weight)
    assert NF4Linear(dense).dense_weight().eq(0).all()
    nn.init.constant_(dense.weight, float("nan"))
    with pytest.raises(DataError, match="not finite"):
        NF4Linear(dense)


@pytest.mark.parametrize("freeze", [NF4Linear, Int8Linear.from_linear])
def test_gradient_of_the_input_is_that_of_the_dense_weight(freeze: type) -> None:
    layer = freeze(linear(24, 40, bias=True))
    inputs = torch.randn(3, 5, 40, requires_grad=True)
    weights = torch.randn(3, 5, 24)
    (layer(inputs) * weights).sum().backward()
    assert inputs.grad is not None
    assert torch.allclose(inputs.grad, weights @ layer.dense_weight(), atol=1e-6)
    with torch.no_grad():
        expected = nn.functional.linear(inputs, layer.dense_weight(), layer.bias)
        assert torch.allclose(layer(inputs), expected, atol=1e-5)


@pytest.mark.parametrize("freeze", [NF4Linear, Int8Linear.from_linear])
def test_no_unpacked_weight_waits_for_the_backward_pass(freeze: type) -> None:
    layer, kept = freeze(linear(256, 256)), []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(torch.randn(2, 256, requires_grad=True)).sum()
    assert max(kept, default=0) < 256 * 256


@pytest.mark.parametrize("freeze", [NF4Linear, Int8Linear.from_linear])
def test_autocast_decides_the_number_format_of_the_product(freeze: type) -> None:
    layer, inputs = freeze(linear(8, 64)), torch.randn(2, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = layer(inputs)
    outputs.float().sum().backward()
    assert outputs.dtype == torch.bfloat16
    assert inputs.grad is not None
    assert inputs.grad.dtype == torch.float32


@pytest.mark.parametrize("weights", ["int8", "nf4"])
def test_rounded_layers_are_dense_and_compute_what_frozen_ones_do(weights: str) -> None:
    frozen, rounded = nn.Sequential(linear(32, 64), linear(8, 32)), nn.Sequential(linear(32, 64), linear(8, 32))
    freeze_(frozen, ["0"], weights)
    round_(rounded, ["0"], weights)
    inputs = torch.randn(4, 64)
    assert type(rounded[0]) is nn.Linear
    with torch.no_grad():
        assert torch.allclose(frozen(inputs), rounded(inputs), atol=1e-6)


def test_bytes_count_shared_weights_once() -> None:
    model = nn.ModuleList([linear(4, 4), linear(4, 4)])
    assert weight_bytes(model) == 2 * 4 * 4 * 4
    model[1].weight = model[0].weight
    assert weight_bytes(model) == 4 * 4 * 4


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() == 0, reason="needs a CUDA GPU")
@pytest.mark.parametrize("freeze", [NF4Linear, Int8Linear.from_linear])
def test_frozen_layer_computes_the_same_on_a_gpu(freeze: type) -> None:
    layer, inputs = freeze(linear(96, 256, bias=True)), torch.randn(4, 256)
    with torch.no_grad():
        expected = layer(inputs)
    there = inputs.cuda().requires_grad_()
    outputs = layer.cuda()(there)
    outputs.sum().backward()
    assert there.grad is not None
    assert torch.allclose(outputs.cpu(), expected, atol=1e-3)
    assert torch.allclose(there.grad.cpu(), layer.dense_weight().sum(dim=0).cpu().expand(4, -1), atol=1e-3)
