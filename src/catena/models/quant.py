"""Number formats of linear layers: 8-bit weights. Compression makes them, checkpoints carry them, the engine runs them.

Weight-only int8, symmetric, one scale for each output channel, rounded to nearest:

    scale[n] = max|weight[n]| / 127        weight[n, k] ~ int8[n, k] * scale[n]

On disk this is the layout `int-quantized` of compressed-tensors (`weight` int8 [out, in], `weight_scale` float32
[out, 1], `input_activations: null`), which `transformers` reads with that package installed. The format covers linear
layers only. Embeddings, norms and the output head stay as they are, except that float32 is stored as float16: their
values lie far inside its range, and its 11 bits cost less accuracy than the 8 of bfloat16. They are computed with in
the number format that the model is loaded in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from catena.core.errors import DataError

IGNORED = ("lm_head",)
LEVELS = 127
INT8_SCHEME = "int8"


class Int8Linear(nn.Module):
    """A linear layer that keeps its weight as int8 and multiplies in the number format of its input."""

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(self, in_features: int, out_features: int, *, bias: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.ones(out_features, 1))
        self.register_buffer("bias", torch.zeros(out_features) if bias else None)

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> Int8Linear:
        """Quantize a layer."""
        layer = cls(linear.in_features, linear.out_features, bias=linear.bias is not None)
        layer.weight, layer.weight_scale = quantize_weight(linear.weight.detach())
        if linear.bias is not None:
            layer.bias = linear.bias.detach().clone()
        return layer

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        if torch.is_grad_enabled() and inputs.requires_grad:
            outputs = frozen_product(inputs, self)
            return outputs if self.bias is None else outputs + self.bias.to(outputs.dtype)
        # The scale is applied to the outputs: there are fewer of them than weights. `torch._weight_int8pack_mm` would
        # save the conversion and is 5 to 60 times slower here (AVX2, 1 to 128 rows).
        outputs = functional.linear(inputs, self.weight.to(inputs.dtype)) * self.weight_scale.to(inputs.dtype)[:, 0]
        return outputs if self.bias is None else outputs + self.bias.to(inputs.dtype)

    def dense_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight [out, in] that the int8 numbers stand for."""
        return (self.weight.float() * self.weight_scale.float()).to(dtype)

    def extra_repr(self) -> str:
        """Say the shape."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class _FrozenProduct(torch.autograd.Function):
    """A product with a packed weight. Autograd would keep the unpacked one of every layer until the backward pass; this
    keeps none and unpacks it again there."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: Any) -> Tensor:
        ctx.layer = layer
        return functional.linear(inputs, layer.dense_weight(inputs.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.dense_weight(gradient.dtype), None


def frozen_product(inputs: Tensor, layer: nn.Module) -> Tensor:
    """Return inputs [..., in] times the transposed `layer.dense_weight` [out, in]; only the inputs get a gradient."""
    kind = inputs.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else inputs.dtype
    outputs: Tensor = _FrozenProduct.apply(inputs.to(dtype), layer)  # type: ignore[no-untyped-call]
    return outputs


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a weight [out, in] to int8 with a float32 scale [out, 1] for each output channel.

    Raises `DataError` where the weight has values that are not finite.
    """
    values = weight.float()
    if not torch.isfinite(values).all():
        raise DataError("the model's weights hold values that are not finite", hint="Its training went wrong.")
    scale = values.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny * LEVELS) / LEVELS
    return (values / scale).round().clamp(-LEVELS, LEVELS).to(torch.int8), scale


def quantize_(model: nn.Module, ignore: Iterable[str] = IGNORED) -> list[str]:
    """Replace, in place, every linear layer by an `Int8Linear`; returns their names. `ignore` holds whole names."""
    kept = set(ignore)
    found = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    names = [name for name, _ in found if name not in kept]
    for name, layer in found:
        if name not in kept:
            model.set_submodule(name, Int8Linear.from_linear(layer))
    return names


def dequantize_(model: nn.Module, dtype: torch.dtype = torch.float32) -> list[str]:
    """Replace, in place, every `Int8Linear` by the dense layer it stands for: more memory, less work for each call."""
    found = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, Int8Linear)]
    for name, layer in found:
        dense = nn.Linear(
            layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta", dtype=dtype
        )
        dense.weight = nn.Parameter(layer.dense_weight().to(dtype), requires_grad=False)
        if layer.bias is not None:
            dense.bias = nn.Parameter(layer.bias.to(dtype), requires_grad=False)
        model.set_submodule(name, dense)
    return [name for name, _ in found]


def is_quantized(model: nn.Module) -> bool:
    """Tell whether a model has int8 layers."""
    return any(isinstance(layer, Int8Linear) for layer in model.modules())


def prepare_(model: nn.Module, settings: Mapping[str, Any]) -> None:
    """Give an empty model the int8 layers that a checkpoint's `quantization_config` describes.

    Raises `DataError` for any other scheme.
    """
    scheme_of(settings)
    ignore = set(settings.get("ignore") or ())
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and name not in ignore:
            model.set_submodule(name, Int8Linear(layer.in_features, layer.out_features, bias=layer.bias is not None))


def scheme_of(settings: Mapping[str, Any]) -> str:
    """Return the short name of a `quantization_config` that Catena runs; raises `DataError` for others."""
    groups = list((settings.get("config_groups") or {}).values())
    weights = groups[0].get("weights") or {} if len(groups) == 1 else {}
    wanted = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
    if (
        settings.get("quant_method") == "compressed-tensors"
        and settings.get("format") == "int-quantized"
        and all(weights.get(key) == value for key, value in wanted.items())
        and groups[0].get("targets") == ["Linear"]
    ):
        return INT8_SCHEME
    method = f"{settings.get('quant_method', 'unknown')}/{settings.get('format', 'unknown')}"
    raise DataError(
        f"the model is quantized as {method}, which Catena does not run",
        hint="It runs compressed-tensors int-quantized (8 bits, symmetric, a scale for each channel).",
    )


def int8_settings(ignore: Iterable[str] = IGNORED) -> dict[str, Any]:
    """Return the `quantization_config` of config.json for int8 layers."""
    weights = {
        "num_bits": 8,
        "type": "int",
        "symmetric": True,
        "strategy": "channel",
        "group_size": None,
        "block_structure": None,
        "dynamic": False,
        "actorder": None,
        "observer": "minmax",
        "observer_kwargs": {},
    }
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": None,
        "output_activations": None,
        "format": "int-quantized",
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": sorted(ignore),
        "config_groups": {"group_0": group},
    }


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return what is written of a model with int8 layers: int8, float32 scales, and float16 instead of float32."""
    scales = {f"{name}.weight_scale" for name, layer in model.named_modules() if isinstance(layer, Int8Linear)}
    result: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() in seen and tensor.numel():
            continue  # tied to one that stands already
        seen.add(tensor.data_ptr())
        halved = tensor.dtype == torch.float32 and name not in scales and _fits_half(tensor)
        result[name] = (tensor.half() if halved else tensor).contiguous().cpu()
    return result


def _fits_half(tensor: Tensor) -> bool:
    return bool(tensor.abs().max() <= torch.finfo(torch.float16).max) if tensor.numel() else True
