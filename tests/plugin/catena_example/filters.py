"""A filter for `data.filter`."""

from __future__ import annotations

from catena.core.config import Config
from catena.core.sample import Sample


class NoShouting(Config):
    """Drop documents written mostly in capitals."""

    max_share: float = 0.5
    """Largest share of capital letters among the letters."""

    def reason(self, sample: Sample) -> str | None:
        """Return the reason code, or None to keep the sample."""
        letters = [letter for letter in sample.text if letter.isalpha()]
        capitals = sum(letter.isupper() for letter in letters)
        return "shouting" if letters and capitals / len(letters) > self.max_share else None
