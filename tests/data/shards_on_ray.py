"""Shards on a local Ray cluster, one of whose workers is killed: `python -m tests.data.shards_on_ray FOLDER`.

In a process of its own, which Ray may fill with threads. Prints the rows of each shard, and how often each was begun.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from catena.core.events import Events
from catena.core.stage import Context
from catena.data.shards import work_shards
from catena.hub.store import init_store
from tests.data.operations import Plan
from tests.data.stores import documents

if __name__ == "__main__":
    root = Path(sys.argv[1])
    store = init_store(root / ".catena")
    for name in ("workdir", "marks"):
        (root / name).mkdir()
    context = Context(store, root / "workdir", 7, Events(), executor="ray")
    source = documents(store, *map(str, range(35)))
    plan = Plan(marks=str(root / "marks"), bad=10)
    folders = work_shards(
        context, source, "tests.data.operations:die_once", plan, label="Work", workers=2, shard_rows=10
    )
    begun = {path.stem: len(path.read_text().split()) for path in (root / "marks").glob("*.log")}
    print(json.dumps({"rows": [int((folder / "rows").read_text()) for folder in folders], "begun": begun}))
    store.close()
