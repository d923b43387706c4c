"""The tables that advice is drawn from: open models, GPUs, tasks. YAML in this folder, and in the user's own files."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, model_validator

from catena.core.config import Config, check
from catena.core.errors import NotFound, WrittenError, did_you_mean
from catena.core.source import read_source

FOLDER = Path(__file__).parent
Kind = Literal["decoder", "encoder", "encoder-decoder"]
ANY_LANGUAGE = "many"
"""Stands for about a hundred languages."""


class OpenModel(Config):
    """What is known of a model that anyone may load."""

    kind: Kind
    """What it can be used as."""
    family: Literal["llama", "qwen2", "qwen3", "gpt2", "bert", "modernbert", "t5", "mt5"]
    """Whose architecture it is: decides how its parameters are counted."""
    parameters: float = Field(gt=0)
    """As its makers publish it."""
    hidden: int = Field(ge=1)
    """Width of the residual stream."""
    layers: int = Field(ge=1)
    """Layers; of an encoder-decoder those of each half."""
    feed_forward: int = Field(ge=1)
    """Inner width of the feed-forward."""
    heads: int = Field(ge=1)
    """Query heads."""
    key_value_heads: int | None = Field(default=None, ge=1)
    """Key and value heads; default: as many."""
    head_dim: int | None = Field(default=None, ge=1)
    """Width of a head; default: hidden / heads."""
    vocabulary: int = Field(ge=1)
    """Tokens it knows."""
    context: int = Field(ge=1)
    """Longest sequence, in tokens."""
    tied: bool = False
    """Input and output embedding share their weights."""
    licence: str
    """SPDX identifier, or what its makers call it; `other`: read the source."""
    languages: tuple[str, ...] = Field(min_length=1)
    """Codes of ISO 639-1; `many`: about a hundred."""
    tasks: tuple[str, ...] = Field(min_length=1)
    """What it is meant for, by the names of the table of tasks."""
    released: int = Field(ge=2018)
    """Year."""
    source: str
    """Where these numbers can be read again."""
    checked: str = ""
    """With what else they were compared; empty: with nothing yet."""

    @model_validator(mode="after")
    def _heads_share(self) -> OpenModel:
        if self.heads % (self.key_value_heads or self.heads):
            raise ValueError("heads is no multiple of key_value_heads")
        if self.parameters < self.matrices:
            raise ValueError(f"its layers alone have {self.matrices:.4g} parameters by their widths")
        return self

    @property
    def query_width(self) -> int:
        """Width of all query heads together."""
        return self.heads * (self.head_dim or self.hidden // self.heads)

    @property
    def cache_width(self) -> int:
        """Width of all key heads together; the values have as many."""
        return self.query_width * (self.key_value_heads or self.heads) // self.heads

    @property
    def gated(self) -> bool:
        """The feed-forward has three matrices, not two."""
        return self.family not in ("gpt2", "bert", "t5")

    @property
    def layer(self) -> int:
        """Parameters in the matrices of one layer (without attention to another half)."""
        attention = 2 * self.hidden * (self.query_width + self.cache_width)
        return attention + (3 if self.gated else 2) * self.hidden * self.feed_forward

    @property
    def crossing(self) -> int:
        """Parameters of one layer's attention to the encoder."""
        return 2 * self.hidden * (self.query_width + self.cache_width) if self.kind == "encoder-decoder" else 0

    @property
    def matrices(self) -> int:
        """Parameters in the matrices of all layers: what is rounded when a model is quantized."""
        return self.layers * (2 * self.layer + self.crossing if self.kind == "encoder-decoder" else self.layer)

    @property
    def head(self) -> int:
        """Parameters of the output head that a step reads; encoders have one of a few labels."""
        return 0 if self.kind == "encoder" else self.vocabulary * self.hidden

    def speaks(self, language: str) -> bool:
        """Say whether its makers name a language."""
        return language in self.languages or ANY_LANGUAGE in self.languages


class Gpu(Config):
    """What a GPU's data sheet says."""

    name: str
    """What it is sold as."""
    memory: float = Field(gt=0)
    """In GB (10^9 bytes)."""
    bandwidth: float = Field(gt=0)
    """Of its memory, in GB/s."""
    tflops: float = Field(gt=0)
    """Peak of matrix products in 16 bits, in 10^12 operations a second, without sparsity."""
    tflops8: float | None = Field(default=None, gt=0)
    """The same in 8 bits."""
    fp8: bool = False
    """The 8 bits may be floating point."""
    half: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """The number format that models are computed in."""
    link: float = Field(gt=0)
    """What it sends to another of the same machine, in GB/s, one way."""
    watts: float = Field(default=0.0, ge=0)
    """Power at most; 0: not known."""
    source: str
    """Where these numbers can be read again."""
    checked: str = ""
    """With what else they were compared; empty: with nothing yet."""


class TaskKind(Config):
    """What a model is wanted for."""

    kinds: tuple[Kind, ...] = Field(min_length=1)
    """Classes of models that do it, the first choice first."""
    prompt: int = Field(ge=1)
    """Usual tokens of what is asked."""
    new: int = Field(ge=0)
    """Usual tokens of the answer; 0 for encoders."""
    stage: str
    """The stage that trains for it."""
    why: str
    """Why these classes, in a sentence."""


RowT = TypeVar("RowT", bound=Config)


def models(own: Path | None = None) -> Mapping[str, OpenModel]:
    """Return every known model by name, those of the file `own` over the shipped ones."""
    return _with_own("models", OpenModel, own)


def gpus(own: Path | None = None) -> Mapping[str, Gpu]:
    """Return every known GPU by name, those of the file `own` over the shipped ones."""
    return _with_own("gpus", Gpu, own)


def tasks() -> Mapping[str, TaskKind]:
    """Return every task by name."""
    return read_table(FOLDER / "tasks.yaml", TaskKind)


def find(table: Mapping[str, RowT], name: str, noun: str) -> RowT:
    """Return a row of a table; raises `NotFound` with the closest names."""
    if name not in table:
        raise NotFound(f"there is no {noun} {name!r} in the table", hint=did_you_mean(name, table))
    return table[name]


def _with_own(name: str, row: type[RowT], own: Path | None) -> Mapping[str, RowT]:
    shipped = read_table(FOLDER / f"{name}.yaml", row)
    return shipped if own is None else {**shipped, **_read(own, row)}


@cache
def read_table(path: Path, row: type[RowT]) -> Mapping[str, RowT]:
    """Read a shipped table."""
    return _read(path, row)


def _read(path: Path, row: type[RowT]) -> dict[str, RowT]:
    """Read a table; raises one `WrittenError` with every mistake, its line, and what was meant."""
    source = read_source(path, noun="table", wrong=WrittenError)
    if not isinstance(source.values, dict) or not source.values:
        raise WrittenError(f"{path}: a table is a mapping of names to rows", hint="See docs/advisor.md.")
    found: dict[str, RowT] = {}
    problems: list[str] = []
    for name, values in source.values.items():
        if not isinstance(values, dict):
            problems.append(f"{source.where((name,))}: {name} is no mapping")
            continue
        made, wrong = check(row, _numbers(values))
        problems += [f"{source.where((name, *one.path))}: {name}.{one.line()}" for one in wrong]
        if made is not None:
            found[str(name)] = made
    if problems:
        raise WrittenError("; ".join(problems), hint="See docs/advisor.md.", problems=problems)
    return found


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Read `7.6e9` as a number: YAML 1.1 does only with a sign in the exponent."""
    found = dict(values)
    if isinstance(size := found.get("parameters"), str):
        try:
            found["parameters"] = float(size)
        except ValueError:
            pass
    return found
