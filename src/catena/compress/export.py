"""Export: a model in, a file for another program out. GGUF for llama.cpp and what stands on it; ONNX for onnxruntime.

model folder -> model.gguf | model.onnx, with the tokenizer's files beside it
"""

from __future__ import annotations

import shutil
from typing import Literal

from pydantic import Field, model_validator

from catena.core.config import Config
from catena.core.errors import UsageError
from catena.core.stage import Context, stage
from catena.core.types import ModelVersion


class ExportConfig(Config):
    """Which file is written, and how."""

    format: Literal["gguf", "onnx"] = "gguf"
    """`gguf`: llama.cpp, Ollama and others. `onnx`: onnxruntime and others."""
    type: Literal["f32", "f16", "bf16", "q8_0", "q4_0"] | None = None
    """Number format of the weights; by default f16 for GGUF and f32, its only one, for ONNX."""
    cache: bool = False
    """ONNX of a decoder: keys and values of what was read before are inputs and outputs, to generate token by token."""
    opset: int = Field(default=18, ge=18, le=24)
    """ONNX: version of the operators."""

    @model_validator(mode="after")
    def _together(self) -> ExportConfig:
        if self.format == "onnx" and self.type not in (None, "f32"):
            raise ValueError(f"ONNX is written as f32, not {self.type}")
        return self


@stage("compress.export")
def export(ctx: Context, cfg: ExportConfig, *, model: ModelVersion) -> ModelVersion:
    """Write a model as a GGUF or ONNX file that other programs run, with the tokenizer beside it."""
    if model.form not in ("full", "quantized"):
        raise UsageError(
            f"only a full model can be exported; this one is {model.form!r}",
            hint="Merge it first (train.merge)." if model.form == "adapter" else "Export the model it was made from.",
        )
    source, folder = ctx.store.checkout(model), ctx.workdir / "model"
    shutil.rmtree(folder, ignore_errors=True)  # what a killed run left; writing again costs less than checking it
    facts = {"architecture": model.architecture, "parameters": model.parameters, "context": model.context}
    if cfg.format == "onnx":
        from catena.compress.onnx_file import write_onnx

        difference = write_onnx(source, folder, cache=cfg.cache, opset=cfg.opset)
        ctx.events.metric("largest_difference", difference)
        made = ctx.store.put_model(folder, "onnx", base=model.digest, license=model.license, dtype="float32", **facts)
    else:
        from catena.models.gguf.write import write_folder

        kind = cfg.type or "f16"
        progress = ctx.progress("write", unit="tensors")
        written = write_folder(source, folder, kind, name=ctx.name, license=model.license, on_tensor=progress.advance)
        progress.finish()
        made = ctx.store.put_model(
            folder,
            "gguf",
            base=model.digest,
            license=model.license,
            dtype=kind,
            quantization=kind if kind.startswith("q") else None,
            labels={"tokenizer": "exact" if written.exact_tokenizer else "nearest"},
            **facts,
        )
    ctx.events.metric("size_ratio", round(made.size / model.size, 4))
    return made
