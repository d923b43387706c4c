"""Several who promote at once: every move is in the history, and the tag stands where the last of them put it."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from catena.hub.fsck import check
from catena.hub.store import Store

Put = Callable[..., Any]
MOVES = 12
PROMOTE = """
import sys
from pathlib import Path
from catena.hub.store import open_store
store, version = open_store(Path(sys.argv[1])), sys.argv[2]
sys.stdin.readline()
for _ in range(int(sys.argv[3])):
    store.tag(f"model@{version}", "production", by=f"promoter {version}")
store.close()
"""


def test_two_who_promote_at_once_lose_nothing(store: Store, put_model: Put, tmp_path: Path) -> None:
    models = {version: put_model(store, version.encode()) for version in ("1", "2")}
    command = [sys.executable, "-c", PROMOTE, str(store.root)]
    people = [subprocess.Popen([*command, version, str(MOVES)], stdin=subprocess.PIPE, text=True) for version in models]
    for one in people:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    for one in people:
        assert one.wait(120) == 0
        assert one.stdin is not None
        one.stdin.close()
    history = store.index.tag_history("model")
    assert Counter(move.by for move in history) == {"promoter 1": MOVES, "promoter 2": MOVES}
    last = history[-1]
    assert store.resolve("model@production").digest == last.digest == models[last.by[-1]].digest
    assert all(move.digest == models[move.by[-1]].digest for move in history)
    assert check(store) == []
