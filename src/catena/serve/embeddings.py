"""`POST /v1/embeddings` and `POST /v1/classify`: texts as vectors, texts with their labels."""

from __future__ import annotations

import array
import base64
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from catena.core.generate import Embedder, Embedding, Labelled, Labeller
from catena.serve.completions import Prompts, Text, listed
from catena.serve.endpoint import Endpoint, Reply
from catena.serve.models import Target
from catena.serve.wire import Body, WireError


class EmbeddingRequest(Body):
    """The body of `POST /v1/embeddings`."""

    input: Prompts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1)
    """So many of a vector's first numbers, made as long as 1 again (arXiv 2205.13147)."""
    user: str | None = None

    @property
    def inputs(self) -> list[str | list[int]]:
        """All texts."""
        return listed(self.input)


class Embeddings(Endpoint[EmbeddingRequest]):
    """The embeddings endpoint."""

    route = "embeddings"
    body = EmbeddingRequest

    async def answer(self, request: EmbeddingRequest, target: Target, reply: Reply) -> None:
        """Turn texts into vectors."""
        generator = target.generator
        if not isinstance(generator, Embedder) or target.adapter:
            raise WireError(f"the model {target.name!r} gives no embeddings", param="model", code="unsupported_model")
        if len(request.inputs) > self.config.max_prompts:
            raise WireError(f"input must have at most {self.config.max_prompts} texts", param="input")
        found = await self.run(lambda: generator.embed(request.inputs))
        await reply.json(embeddings_body(request, target, found))


def embeddings_body(request: EmbeddingRequest, target: Target, found: Sequence[Embedding]) -> dict[str, Any]:
    """Return the answer; raises `WireError` for more dimensions than there are."""
    size = request.dimensions
    if size is not None and found and size > len(found[0].vector):
        raise WireError(f"dimensions must be at most {len(found[0].vector)}", param="dimensions", code="invalid_value")
    vectors = [one.vector if size is None else shortened(one.vector, size) for one in found]
    tokens = sum(one.tokens for one in found)
    return {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": list(vector) if request.encoding_format == "float" else in_base64(vector),
            }
            for index, vector in enumerate(vectors)
        ],
        "model": target.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def shortened(vector: Sequence[float], size: int) -> tuple[float, ...]:
    """Return the first numbers of a vector, made as long as 1 again."""
    kept = vector[:size]
    length = math.sqrt(sum(one * one for one in kept)) or 1.0
    return tuple(one / length for one in kept)


def in_base64(vector: Sequence[float]) -> str:
    """Return a vector as little-endian float32 in Base64, OpenAI's shorter form."""
    numbers = array.array("f", vector)
    if array.array("H", [1]).tobytes() != b"\x01\x00":  # a machine that counts from the other end
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()


class ClassifyRequest(Body):
    """The body of `POST /v1/classify`, as vLLM has it."""

    input: Text | Annotated[list[Text], Field(min_length=1)]
    user: str | None = None

    @property
    def inputs(self) -> list[str]:
        """All texts."""
        return [self.input] if isinstance(self.input, str) else self.input


class Classify(Endpoint[ClassifyRequest]):
    """The endpoint for models that say which label a text has."""

    route = "classify"
    body = ClassifyRequest

    async def answer(self, request: ClassifyRequest, target: Target, reply: Reply) -> None:
        """Label texts."""
        generator = target.generator
        if not isinstance(generator, Labeller):
            raise WireError(f"the model {target.name!r} has no labels", param="model", code="unsupported_model")
        if len(request.inputs) > self.config.max_prompts:
            raise WireError(f"input must have at most {self.config.max_prompts} texts", param="input")
        found: list[Labelled] = await self.run(lambda: generator.classify(request.inputs))
        tokens = sum(one.tokens for one in found)
        await reply.json(
            {
                "object": "list",
                "model": target.name,
                "data": [
                    {
                        "index": index,
                        "label": one.label,
                        "probs": list(one.probabilities.values()),
                        "labels": list(one.probabilities),
                        "num_classes": len(one.probabilities),
                    }
                    for index, one in enumerate(found)
                ],
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }
        )
