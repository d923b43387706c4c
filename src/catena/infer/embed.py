"""Embeddings: a text as one vector, from an encoder, or from the decoder that an engine has in memory.

texts -> tokens -> hidden states of the last layer -> pooled over the text -> length 1

    mean   the mean over all tokens (most encoders)      cls   the first token       last   the last token (decoders)
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, cast

import torch
from pydantic import Field
from torch import Tensor

from catena.core.config import Config, parse
from catena.core.errors import UsageError
from catena.core.generate import Delta, Embedding, Request
from catena.infer.codec import ModelCodec
from catena.models.classify import padded, padding_of
from catena.models.heads import context_of

if TYPE_CHECKING:
    from catena.infer.engine import Engine

Pooling = Literal["mean", "cls", "last"]
TABLE: tuple[tuple[str, Pooling], ...] = (
    ("pooling_mode_cls_token", "cls"),
    ("pooling_mode_lasttoken", "last"),
    ("pooling_mode_mean_tokens", "mean"),
)


class EmbedConfig(Config):
    """How texts become vectors."""

    pooling: Literal["auto", "mean", "cls", "last"] = "auto"
    """What of the hidden states is taken. `auto`: what the folder says (`1_Pooling/config.json` of
    sentence-transformers), else `mean` for encoders and `last` for decoders."""
    normalise: bool = True
    """Make every vector as long as 1."""
    token_budget: int = Field(default=8192, ge=1)
    """Most tokens in one pass, padding included; a longer text goes alone."""


class TextEmbedder:
    """An `Embedder` over an encoder. It generates nothing."""

    def __init__(
        self, model: Any, tokenizer: Any, config: EmbedConfig | None = None, pooling: Pooling = "mean"
    ) -> None:
        self.config = config or EmbedConfig()
        self.pooling: Pooling = pooling if self.config.pooling == "auto" else self.config.pooling
        self.model = body_of(model.eval())
        self.context = context_of(model.config.to_dict())
        self.codec = ModelCodec(tokenizer, model.get_input_embeddings().weight.shape[0])
        self._pad = padding_of(tokenizer)
        self._lock = threading.Lock()
        self._texts = self._tokens = 0

    def embed(self, prompts: Sequence[str | Sequence[int]]) -> list[Embedding]:
        """Return the vector of each text."""
        rows = [checked(self.codec.tokens(prompt), self.context) for prompt in prompts]
        with self._lock:
            self._texts += len(rows)
            self._tokens += sum(map(len, rows))
            return batches(rows, self.config, self._pad, self._forward)

    def _forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        device = next(self.model.parameters()).device
        ids, mask = ids.to(device), mask.to(device)
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return pooled(hidden, mask, self.pooling)

    def submit(self, request: Request, on_delta: Callable[[Delta], None]) -> NoReturn:
        """Refuse: this model writes no text."""
        raise UsageError("this model gives embeddings and does not generate", hint="Ask /v1/embeddings.")

    def cancel(self, request_id: str) -> None:
        """Nothing runs."""

    def stats(self) -> Mapping[str, float]:
        """Return counters."""
        told = {"alive": 1.0, "texts_total": self._texts, "prompt_tokens_total": self._tokens}
        return told | ({"context_tokens": self.context} if self.context else {})

    def close(self) -> None:
        """Nothing to end."""


class EmbedsTexts:
    """What makes an engine an `Embedder`: its model reads the texts, and answers nobody else meanwhile.

    The engine's attention is put aside for the pass, as there is nothing to keep of it.
    """

    def embed(self, prompts: Sequence[str | Sequence[int]], config: EmbedConfig | None = None) -> list[Embedding]:
        """Return the vector of each text: by default the hidden state of its last token."""
        engine = cast("Engine", self)
        config = config or EmbedConfig()
        pooling: Pooling = "last" if config.pooling == "auto" else config.pooling
        rows = [checked(engine.codec.tokens(prompt), engine.prompter.context) for prompt in prompts]
        model, runner = engine.runner.model, engine.runner
        body = body_of(model)

        def forward(ids: Tensor, mask: Tensor) -> Tensor:
            ids, mask = ids.to(runner.device), mask.to(runner.device)
            return pooled(body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state, mask, pooling)

        with engine.paused():
            runner.adapters.select([])
            paged = model.config._attn_implementation
            model.set_attn_implementation(runner.own_attention)
            try:
                return batches(rows, config, padding_of(engine.tokenizer), forward)
            finally:
                model.set_attn_implementation(paged)


def body_of(model: Any) -> Any:
    """Return the part of a model that gives hidden states: without its head, and without a decoder that reads them."""
    if getattr(model.config, "is_encoder_decoder", False):
        return model.get_encoder()
    return model.base_model


def checked(tokens: list[int], context: int) -> list[int]:
    """Return a text's tokens; raises `UsageError` where there are too many."""
    if context and len(tokens) > context:
        raise UsageError(
            f"a text has {len(tokens)} tokens; the context is {context} tokens", hint="Cut it into pieces."
        )
    return tokens


@torch.inference_mode()
def batches(
    rows: Sequence[list[int]], config: EmbedConfig, pad: int, forward: Callable[[Tensor, Tensor], Tensor]
) -> list[Embedding]:
    """Put rows through `forward` in batches of like lengths; the vectors come in the order of the rows."""
    order = sorted(range(len(rows)), key=lambda index: (len(rows[index]), index))
    found: dict[int, Embedding] = {}
    while order:
        chosen = [order.pop()]
        longest = len(rows[chosen[0]])  # the longest comes first, so that what does not fit is known at once
        while order and longest * (len(chosen) + 1) <= config.token_budget:
            chosen.append(order.pop())
        ids = padded([rows[index] for index in chosen], pad)
        mask = padded([[1] * len(rows[index]) for index in chosen], 0)
        vectors = forward(ids, mask).float()
        if config.normalise:
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        for index, vector in zip(chosen, vectors.tolist(), strict=True):
            found[index] = Embedding(tuple(vector), len(rows[index]))
    return [found[index] for index in range(len(rows))]


def pooled(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Return `[batch, dim]` of hidden states `[batch, tokens, dim]`; rows are filled up on the right."""
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(dim=1) - 1]
    weights = mask[:, :, None].to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


def pooling_of(folder: Path) -> Pooling:
    """Return how a folder of sentence-transformers pools; `mean` where it does not say."""
    file = folder / "1_Pooling" / "config.json"
    if not file.exists():
        return "mean"
    told = json.loads(file.read_text(encoding="utf-8"))
    return next((pooling for key, pooling in TABLE if told.get(key)), "mean")


def open_embedder(folder: Path, **options: Any) -> TextEmbedder:
    """Load an encoder's folder and return an embedder over it; `options` are the fields of `EmbedConfig`."""
    from catena.models.checkpoint import load

    config = parse(EmbedConfig, options, where="embed")
    model, tokenizer = load(folder)
    return TextEmbedder(model, tokenizer, config, pooling_of(folder))
