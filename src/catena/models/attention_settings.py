"""Settings of sparse attention, free of torch: what a config and a model's config.json say of `local_global`."""

from __future__ import annotations

from pydantic import Field

from catena.core.config import Config

LOCAL_GLOBAL = "local_global"
"""The name in `AttentionInterface`, and the key of the settings in a model's config.json."""
SMALLEST_BLOCK = 64
"""Queries in a block at least: a narrow window would cut the work into pieces that cost more to start than to do."""


class LocalGlobal(Config):
    """Who attends to whom: a token to the last `window` tokens, itself one of them, and to its document's first."""

    window: int = Field(default=256, ge=1)
    """Tokens that each token sees behind it, itself included."""
    memory: int = Field(default=16, ge=0)
    """Tokens at the start of a document that all of it sees (BigBird and Longformer call them global)."""

    @property
    def crossover(self) -> int:
        """Up to so many tokens one masked product is faster than blocks (docs/attention.md); the result is the same."""
        return 3 * max(self.window, SMALLEST_BLOCK)
