"""Tags that a rollback could not put back, since the index was away: tried again until it answers, over restarts too.

The replicas go back at once. But a tag that stays on what was rolled back would bring it with the next start.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from typing import Any

from catena.core.errors import CatenaError
from catena.serve.releases.tags import Move, Tags

logger = logging.getLogger(__name__)
AGAIN_S = 5.0
"""Between two tries."""


class Owed:
    """`moves` is a list that its owner keeps on the disk."""

    def __init__(self, tags: Tags | None, moves: list[dict[str, Any]]) -> None:
        self._tags, self._moves = tags, moves
        self._again = 0.0

    def back(self, move: Move | None, by: str) -> bool | None:
        """Put a tag back, now or later; None where there is none, False where somebody has moved it since."""
        if move is None or self._tags is None:
            return None
        try:
            back = self._tags.back(move, by)
        except CatenaError as error:
            logger.error("%s@%s is put back when the index answers: %s", move.name, move.tag, error)
            self._moves.append({"move": asdict(move), "by": by})
            return None
        if not back:
            logger.warning("%s@%s was moved by somebody else, and stays", move.name, move.tag)
        return back

    def due(self) -> bool:
        """Tell whether there is something to try."""
        return bool(self._moves) and self._tags is not None and time.monotonic() >= self._again

    def pay(self) -> list[tuple[Move, str, bool]]:
        """Try all; returns what is settled: the move, whose it was, and whether the tag went back."""
        assert self._tags is not None
        settled = []
        self._again = time.monotonic() + AGAIN_S
        for one in list(self._moves):
            move = Move(**one["move"])
            try:
                settled.append((move, str(one["by"]), self._tags.back(move, one["by"])))
            except CatenaError as error:
                logger.warning("%s@%s cannot be put back yet: %s", move.name, move.tag, error)
                continue
            self._moves.remove(one)
        return settled
