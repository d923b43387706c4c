"""The journal of a search: each trial that ended, a line of JSON. A search that was killed goes on from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from catena.flow.search import Trial


class Journal:
    """What ended, by number. A line that a kill cut short is passed over, and its trial is not lost: see `tune`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.trials: dict[int, Trial] = {}
        for line in path.read_bytes().splitlines() if path.exists() else ():
            try:
                trial = trial_from(orjson.loads(line))
            except orjson.JSONDecodeError:
                continue
            self.trials[trial.number] = trial

    def add(self, trial: Trial) -> None:
        """Write a trial down, in one write."""
        self.trials[trial.number] = trial
        torn = self._path.exists() and not self._path.read_bytes().endswith(b"\n")
        with self._path.open("ab") as stream:
            stream.write(b"\n" * torn + line_of(trial))


def trial_from(told: Mapping[str, Any]) -> Trial:
    """Return the trial that a record tells of."""
    curve = {int(step): float(value) for step, value in told["curve"].items()}
    return Trial(**{**told, "curve": curve, "scores": tuple(told["scores"])})


def line_of(trial: Trial, *, bare: bool = False) -> bytes:
    """Return a trial as a line; `bare` leaves out what another run of the same search would not have alike."""
    record = asdict(trial) | {"curve": {str(step): value for step, value in trial.curve.items()}}
    for name in ("ref", "seconds") if bare else ():
        del record[name]
    return orjson.dumps(record) + b"\n"
