"""Which models there are, by the names that requests say: `name`, `name:adapter`, or an adapter's name alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from catena.core.errors import did_you_mean
from catena.core.generate import Codec, HasAdapters, HasCodec, StreamingGenerator
from catena.serve.wire import WireError


@dataclass(frozen=True, slots=True)
class Target:
    """What a request's `model` stands for."""

    name: str
    """As the request says it."""
    generator: StreamingGenerator
    adapter: str
    fingerprint: str

    @property
    def codec(self) -> Codec:
        """How the model reads text; raises `WireError` where it does not tell."""
        if not isinstance(self.generator, HasCodec):
            raise WireError(f"the model {self.name!r} does not tell its tokens", param="model")
        return self.generator.codec

    @property
    def context(self) -> int | None:
        """The longest sequence in tokens, where the generator tells it."""
        told = self.generator.stats().get("context_tokens")
        return None if told is None else int(told)


class Models:
    """All models of a server."""

    def __init__(self, generators: Mapping[str, StreamingGenerator], fingerprints: Mapping[str, str]) -> None:
        self.generators = generators
        self._fingerprints = fingerprints

    def resolve(self, name: str) -> Target:
        """Return what a name stands for; raises `WireError` 404."""
        if name in self.generators:
            return self._target(name, name, "")
        base, _, adapter = name.rpartition(":")
        if adapter and adapter in self.adapters(base):
            return self._target(name, base, adapter)
        bases = [one for one in self.generators if name in self.adapters(one)]
        if len(bases) == 1:
            return self._target(name, bases[0], name)
        hint = did_you_mean(name, self.names())
        raise WireError(f"the model {name!r} does not exist. {hint}", param="model", code="model_not_found", status=404)

    def names(self) -> list[str]:
        """Return every model, each followed by what it is with an adapter."""
        return [name for base in self.generators for name in (base, *(f"{base}:{one}" for one in self.adapters(base)))]

    def adapters(self, base: str) -> list[str]:
        """Return the adapters beside a model."""
        generator = self.generators.get(base)
        return list(generator.adapters) if isinstance(generator, HasAdapters) else []

    def body(self, name: str, created: int) -> dict[str, Any]:
        """Return a model's entry in the list of models; raises `WireError` 404."""
        target = self.resolve(name)
        base = next(one for one, generator in self.generators.items() if generator is target.generator)
        return {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "catena",
            "parent": base if target.adapter else None,
            "max_model_len": target.context,
            **({"digest": self._fingerprints[base]} if base in self._fingerprints and not target.adapter else {}),
        }

    def _target(self, name: str, base: str, adapter: str) -> Target:
        return Target(name, self.generators[base], adapter, self._fingerprints.get(base, "")[:12])
