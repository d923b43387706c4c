"""The generator that fits a model folder: llama.cpp for a GGUF file, otherwise ours for its head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from catena.core.errors import UsageError
from catena.core.generate import GENERATORS
from catena.models.checkpoint import read_config
from catena.models.heads import Head, head_of

BY_HEAD: dict[Head, str] = {"causal": "native", "seq2seq": "seq2seq", "masked": "embed", "sequence": "classify"}


def open_fitting(folder: Path, **options: Any) -> Any:
    """Open a model folder by what it is; `options` are those of the generator that fits.

    Raises `UsageError` for a model that labels tokens: nothing here asks it.
    """
    if any(folder.glob("*.gguf")):
        return GENERATORS.load("llama.cpp")(folder, **options)
    head = head_of(read_config(folder))
    if head not in BY_HEAD:
        raise UsageError(f"a model with the head {head!r} cannot be served", hint="Use it with evaluate.classify.")
    return GENERATORS.load(BY_HEAD[head])(folder, **options)
