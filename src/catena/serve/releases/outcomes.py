"""How a request ended, in the words of a release: failed or not, what was said, how fast, what moderation has against
it. Of answers that go out moderation has decided already; about copies, which nobody gets, it is asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from catena.govern.moderation.moderator import Moderator
from catena.serve.gateway.call import Call, answer_text
from catena.serve.middleware.moderation import Moderation
from catena.serve.releases.plan import Outcome


class Outcomes:
    """Outcomes of requests, with the moderation in front of a gateway: none, or one."""

    def __init__(self, middleware: Sequence[Any]) -> None:
        self._moderators: list[Moderator] = [kind.kwargs["moderator"] for kind in middleware if kind.cls is Moderation]

    def of(self, call: Call, user: str, words: Collection[str]) -> Outcome | None:
        """Return how a request ended; None where that says nothing about the model.

        That is one that was refused, answered before any replica was asked (from the cache; a job that was taken in),
        or whose client left.
        """
        stopped = call.left and call.flagged()  # by moderation, in the middle of a stream
        unasked = call.cached or (not call.attempts and call.status < 400)
        if unasked or (call.left and not stopped) or call.status in (401, 403, 429):
            return None
        failed = not stopped and (call.status >= 400 or call.cut or call.fell_back or call.failures > 0)
        silent = failed or call.ask.route not in ("chat", "completions", "responses")
        text = None if silent else answer_text(bytes(call.answer), call.streamed)
        written = call.tokens()[1]
        pace = (time.monotonic() - call.began - call.first_s) / written if call.streamed and written > 1 else None
        flagged = call.flagged() or any(word in (text or "") for word in words)
        refused = 400 <= call.status < 500
        return Outcome(call.arm, user, failed, text, call.first_s or None, pace, flagged, refused)

    def flags(self, words: Collection[str]) -> Callable[[str], bool]:
        """Return what tells whether there is something against the text of a copy."""

        def flagged(text: str) -> bool:
            return any(one.review(text).decisions for one in self._moderators) or any(word in text for word in words)

        return flagged
