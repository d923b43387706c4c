from __future__ import annotations

import logging

import pytest

from catena.models import native
from tests.infer.soak import KINDS, soak


@pytest.mark.parametrize("kind", KINDS)
def test_random_traffic_leaks_nothing_and_every_answer_is_right(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    if kind == "native" and native.library() is None:
        pytest.skip("no C compiler here")
    caplog.set_level(logging.CRITICAL, "catena.infer.engine")
    tally = soak(300, kind=kind)
    assert tally.wrong == []
    assert tally.stats["cache_blocks_used"] == tally.stats["running"] == tally.stats["waiting"] == 0
    assert tally.stats["alive"] == 1
    # All kinds of ends were met.
    assert set(tally.ends) >= {"length", "cancelled", "listener failed", "refused: too long", "deadline"}, tally.ends
    assert (tally.stats["guessed_right_total"] > 0) >= (kind == "draft")
    assert tally.stats["preemptions_total"] + tally.stats["cached_tokens_total"] > 0
