"""Too short, or too long, to learn from.

50 to 2,048 words are what a supervised set is cut to; Gopher's own limits are 50 and 100,000. There is no upper limit
unless one is asked for: a long document is packed into pieces for pretraining, and loses nothing.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from catena.core.config import Config
from catena.core.sample import Sample
from catena.data.words import words_of


class Length(Config):
    """Keep documents of a sensible length; each Han, kana or hangul character counts as one word."""

    min_tokens: int = Field(default=50, ge=0)
    """Fewest words (characters, in Chinese, Japanese and Korean)."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Most words; no limit if absent."""

    @model_validator(mode="after")
    def _in_order(self) -> Length:
        if self.max_tokens is not None and self.max_tokens < self.min_tokens:
            raise ValueError(f"max_tokens {self.max_tokens} is below min_tokens {self.min_tokens}")
        return self

    def reason(self, sample: Sample) -> str | None:
        """Return `too_short`, `too_long`, or None."""
        count = len(words_of(sample.text))
        if count < self.min_tokens:
            return "too_short"
        if self.max_tokens is not None and count > self.max_tokens:
            return "too_long"
        return None
