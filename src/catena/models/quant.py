"""Number formats of linear layers. Compression makes them, checkpoints carry them, the engine runs them.

On disk all are layouts of compressed-tensors, which `transformers` reads with that package installed, and vLLM, SGLang
and others by themselves. They cover linear layers only. Embeddings, norms and the output head stay as they are, except
that float32 is stored as float16: their values lie far inside its range, and its 11 bits cost less accuracy than the 8
of bfloat16. They are computed with in the number format that the model is loaded in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from catena.core.errors import DataError, UsageError, did_you_mean
from catena.models.packed import PackedLinear, finite, frozen_product, matches, weight_args
from catena.models.quant_float import FP4_GROUP, DynamicFP8Linear, FP4Linear, FP8Linear
from catena.models.quant_int import DynamicInt8Linear, Int4Linear, Int8Linear, group_scale, quantize_weight, round_int4

__all__ = ["FP4Linear", "FP8Linear", "Int4Linear", "Int8Linear", "PackedLinear", "frozen_product", "quantize_weight"]

IGNORED = ("lm_head",)
INT8_SCHEME = "int8"
GROUP_SIZE = 128
"""Of int4: what the other engines have kernels for."""


@dataclass(frozen=True)
class Scheme:
    """A number format: its layer, its layout on disk, and how a config describes it."""

    layer: type[PackedLinear]
    layout: str
    weights: Mapping[str, Any]
    activations: Mapping[str, Any] | None = None

    def empty(self, linear: nn.Linear, group_size: int) -> PackedLinear:
        """Return a layer of this format without values."""
        size, bias = (linear.in_features, linear.out_features), linear.bias is not None
        return Int4Linear(*size, group_size, bias=bias) if self.layer is Int4Linear else self.layer(*size, bias=bias)

    def rounded(self, linear: nn.Linear, group_size: int) -> PackedLinear:
        """Return a layer's nearest one in this format."""
        if self.layer is Int4Linear:
            weight = finite(linear.weight)
            scale = group_scale(weight, group_size)
            return Int4Linear.of(round_int4(weight, scale), scale, linear)
        make: Callable[[nn.Linear], PackedLinear] = getattr(self.layer, "from_linear")  # noqa: B009
        return make(linear)


_ROWS = {"strategy": "token", "dynamic": True, "observer": None}
_SHORT = {"scale_dtype": "torch.float8_e4m3fn", "zp_dtype": "torch.float8_e4m3fn"}
SCHEMES: dict[str, Scheme] = {
    INT8_SCHEME: Scheme(Int8Linear, "int-quantized", weight_args(8, "int", "channel")),
    "w8a8": Scheme(
        DynamicInt8Linear,
        "int-quantized",
        weight_args(8, "int", "channel"),
        {**weight_args(8, "int", "token"), **_ROWS},
    ),
    "int4": Scheme(Int4Linear, "pack-quantized", weight_args(4, "int", "group", GROUP_SIZE)),
    "fp8": Scheme(FP8Linear, "float-quantized", weight_args(8, "float", "channel")),
    "fp8-dynamic": Scheme(
        DynamicFP8Linear,
        "float-quantized",
        weight_args(8, "float", "channel"),
        {**weight_args(8, "float", "token"), **_ROWS},
    ),
    "nvfp4": Scheme(FP4Linear, "nvfp4-pack-quantized", weight_args(4, "float", "tensor_group", FP4_GROUP, **_SHORT)),
}


def linears(model: nn.Module, ignored: Iterable[str] = IGNORED) -> dict[str, nn.Linear]:
    """Return the dense linear layers by name, without ignored ones: whole names, or `re:` and a pattern."""
    ignored = tuple(ignored)
    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    return {name: layer for name, layer in found.items() if not _among(name, ignored)}


def _among(name: str, patterns: Iterable[str]) -> bool:
    return any(name == one or (one.startswith("re:") and re.match(one[3:], name)) for one in patterns)


def check_shapes(layers: Mapping[str, nn.Linear], scheme: str, group_size: int = GROUP_SIZE) -> None:
    """Raise `UsageError` for an unknown scheme, or where a layer's inputs cannot be cut into its groups."""
    if scheme not in SCHEMES:
        raise UsageError(f"there is no number format {scheme!r}", hint=did_you_mean(scheme, SCHEMES))
    size = {"int4": group_size, "nvfp4": FP4_GROUP}.get(scheme, 1)
    if scheme == "int4" and (size < 8 or size % 8):
        raise UsageError(f"a group of {size} numbers cannot be packed", hint="Groups are multiples of 8: 128, 64, 32.")
    for name, layer in layers.items():
        if layer.in_features % size:
            fitting = [one for one in (128, 64, 32, 16, 8) if all(not x.in_features % one for x in layers.values())]
            hint = f"These sizes divide every layer: {', '.join(map(str, fitting))}." if fitting else ""
            raise UsageError(
                f"{name} has {layer.in_features} inputs, which groups of {size} do not divide",
                hint=hint if scheme == "int4" else "Ignore this layer, or take another number format.",
            )


def quantize_(
    model: nn.Module, ignore: Iterable[str] = IGNORED, scheme: str = INT8_SCHEME, group_size: int = GROUP_SIZE
) -> list[str]:
    """Replace, in place, every linear layer by its nearest in a number format; returns their names.

    Raises `UsageError` where a group does not divide a layer and `DataError` for values that are not finite.
    """
    found = linears(model, ignore)
    check_shapes(found, scheme, group_size)
    for name, layer in found.items():
        model.set_submodule(name, SCHEMES[scheme].rounded(layer, group_size))
    return list(found)


def dequantize_(model: nn.Module, dtype: torch.dtype = torch.float32) -> list[str]:
    """Replace, in place, every packed layer by the dense layer it stands for: more memory, less work for each call.

    A format that rounds the layer's inputs too (W8A8) rounds them no more.
    """
    found = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, PackedLinear)]
    for name, layer in found:
        dense = nn.Linear(
            layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta", dtype=dtype
        )
        dense.weight = nn.Parameter(layer.dense_weight().to(dtype), requires_grad=False)
        if layer.bias is not None:
            dense.bias = nn.Parameter(layer.bias.to(dtype), requires_grad=False)
        model.set_submodule(name, dense)
    return [name for name, _ in found]


def prepack_(model: nn.Module, dtype: torch.dtype) -> list[str]:
    """Lay out every packed layer for many products (`PackedLinear.prepack_`); returns those that no kernel reads."""
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, PackedLinear)]
    return [name for name, layer in layers if not layer.prepack_(dtype)]


def is_quantized(model: nn.Module) -> bool:
    """Tell whether a model has packed layers."""
    return any(isinstance(layer, PackedLinear) for layer in model.modules())


def prepare_(model: nn.Module, settings: Mapping[str, Any]) -> None:
    """Give an empty model the packed layers that a checkpoint's `quantization_config` describes.

    Raises `DataError` for a scheme that Catena does not run.
    """
    scheme = SCHEMES[scheme_of(settings)]
    (group,) = settings["config_groups"].values()
    size = group["weights"].get("group_size") or 0
    for name, layer in linears(model, settings.get("ignore") or ()).items():
        model.set_submodule(name, scheme.empty(layer, size))


def scheme_of(settings: Mapping[str, Any]) -> str:
    """Return the short name of a `quantization_config` that Catena runs; raises `DataError` for others."""
    groups = list((settings.get("config_groups") or {}).values())
    if settings.get("quant_method") == "compressed-tensors" and len(groups) == 1:
        group = groups[0]
        for name, scheme in SCHEMES.items():
            if (
                (group.get("format") or settings.get("format")) == scheme.layout
                and matches(group.get("weights"), scheme.weights)
                and matches(group.get("input_activations"), scheme.activations)
                and group.get("targets") == ["Linear"]
            ):
                return name
    method = f"{settings.get('quant_method', 'unknown')}/{settings.get('format', 'unknown')}"
    raise DataError(
        f"the model is quantized as {method}, which Catena does not run",
        hint="It runs these of compressed-tensors, symmetric: int-quantized and float-quantized with a scale for each "
        "channel, pack-quantized with 4 bits in groups, nvfp4-pack-quantized.",
    )


def settings_of(model: nn.Module) -> dict[str, Any]:
    """Return the `quantization_config` of config.json for a model with packed layers, all of one format."""
    packed = [layer for layer in model.modules() if isinstance(layer, PackedLinear)]
    (name,) = (name for name, scheme in SCHEMES.items() if scheme.layer is type(packed[0]))
    size = packed[0].group_size if isinstance(packed[0], Int4Linear) else None
    return settings_for(name, linears(model, ()), size)


def settings_for(name: str, ignore: Iterable[str] = IGNORED, group_size: int | None = None) -> dict[str, Any]:
    """Return the `quantization_config` of a scheme; `ignore` names the linear layers that stay dense."""
    scheme = SCHEMES[name]
    group = {
        "targets": ["Linear"],
        "weights": {**scheme.weights, **({"group_size": group_size} if group_size else {})},
        "input_activations": dict(scheme.activations) if scheme.activations else None,
        "output_activations": None,
        "format": scheme.layout,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": scheme.layout,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": sorted(ignore),
        "config_groups": {"group_0": group},
    }


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return what is written of a model with packed layers: their own tensors, and float16 instead of float32."""
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, PackedLinear)]
    kept = {f"{name}.{part}" for name, layer in layers for part in layer.kept}
    result: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() in seen and tensor.numel():
            continue  # tied to one that stands already
        seen.add(tensor.data_ptr())
        halved = tensor.dtype == torch.float32 and name not in kept and _fits_half(tensor)
        result[name] = (tensor.half() if halved else tensor).contiguous().cpu()
    return result


def _fits_half(tensor: Tensor) -> bool:
    return bool(tensor.abs().max() <= torch.finfo(torch.float16).max) if tensor.numel() else True
