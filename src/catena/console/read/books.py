"""What is kept in memory of a workspace between two looks: one of each book for each open store."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from catena.console.read.curves import CurveBook
from catena.console.read.evaluation import EvaluationBook
from catena.console.read.models import ModelBook
from catena.console.read.runs import RunBook
from catena.hub.store import Store
from catena.workspace import Workspace


@dataclass(frozen=True)
class Books:
    """The books of one workspace."""

    runs: RunBook
    curves: CurveBook
    models: ModelBook
    evaluation: EvaluationBook


_OPEN: WeakKeyDictionary[Store, Books] = WeakKeyDictionary()
_LOCK = threading.Lock()


def books(workspace: Workspace) -> Books:
    """Return the books of a workspace; they live as long as its store."""
    with _LOCK:
        found = _OPEN.get(workspace.store)
        if found is None:
            runs = RunBook(workspace.store)
            found = Books(runs, CurveBook(runs), ModelBook(workspace.store), EvaluationBook(workspace.store))
            _OPEN[workspace.store] = found
        return found
