"""Training checkpoints: all that a killed training needs to go on bit-exactly. No pickle.

    <workdir>/checkpoint-00000200/
        rank-0000.safetensors   the weights and the optimizer's state that this process holds, and torch's random state
        rank-0000.json          where each tensor lies in its global tensor (catena.train.regions), other random states
        state.json              counters, number of processes, SHA-256 of every file

The training stops only for a copy to the host's memory; a thread writes, hashes and syncs. A folder appears in one
rename when every process has written its part. Of a damaged checkpoint the one before it is taken.
"""

from __future__ import annotations

import json
import math
import shutil
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from catena.core.digest import sha256_of_file
from catena.core.errors import EnvironmentProblem, environment_problem
from catena.hub.files import rename_durably, sync_folder, write_atomically
from catena.train import randomness
from catena.train.regions import check_fits, described, fill, keyed, stored_regions, write_tensors

if TYPE_CHECKING:
    from catena.train.parallel.strategy import Piece, Strategy

PREFIX = "checkpoint-"
STATE = "state.json"
GRACE_S = 5.0
"""Time for the other processes to write their parts, once this one's training has failed."""


class Checkpoints:
    """The checkpoints of one training in a folder that all its processes see."""

    def __init__(self, folder: Path, strategy: Strategy, kept: int, say: Callable[[str], None]) -> None:
        self.folder, self.strategy, self.kept, self._say = folder, strategy, kept, say
        self.saved: int | None = None
        """Step of the newest checkpoint of this training that is whole on the disk."""
        self.save_s = 0.0
        """Seconds that the last one took to write, beside the training."""
        self._steps: list[int] = []
        self._count = 0
        self._host: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._deadline = math.inf
        self._failure: BaseException | None = None
        self._refused: BaseException | None = None
        if strategy.main:
            for leftover in folder.glob(f".{PREFIX}*.writing"):
                shutil.rmtree(leftover, ignore_errors=True)
        strategy.any(False)  # nobody writes before the leftovers are gone

    def save(self, pieces: Sequence[Piece], counters: dict[str, Any], also: Collection[int | None] = ()) -> None:
        """Begin to write a checkpoint named by `counters["step"]`, when the last one is written.

        Returns when everything is copied. The newest `kept` and those of the steps in `also` stay, older ones go.
        """
        self.wait()
        held = keyed(pieces)
        tensors = {key: self._copied(key, piece.tensor) for key, piece in held.items()}
        if self.strategy.device.type == "cuda":
            torch.cuda.synchronize(self.strategy.device)
        facts = {"regions": described(held), "random": randomness.plain()}
        tensors |= randomness.tensors(self.strategy.device)
        self._count += 1
        self._thread = threading.Thread(
            target=self._guarded, args=(tensors, facts, counters, frozenset(also)), name="checkpoint", daemon=True
        )
        self._thread.start()

    def wait(self) -> bool:
        """Wait until what was begun is on the disk; tells whether it is. A disk's refusal is said, not raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is None:
            return True
        if not isinstance(failure, OSError | EnvironmentProblem):
            raise failure
        problem = environment_problem(failure, self.folder) or failure
        self._say(
            f"a checkpoint could not be written: {problem}; the one before is kept, the next is tried in its turn"
        )
        self._refused = failure
        return False

    def must_be_there(self) -> None:
        """Wait, and raise `EnvironmentProblem` where the last checkpoint could not be written."""
        if self.wait() or self._refused is None:
            return
        raise environment_problem(self._refused, self.folder) or EnvironmentProblem(
            f"the last checkpoint could not be written: {self._refused}",
            hint="Mend what is wrong with the disk, then run the same command: it goes on where it was.",
        ) from self._refused

    def close(self) -> None:
        """Let what was begun come to its end, whatever that is; processes that may be gone are not waited for long."""
        self._deadline = time.monotonic() + GRACE_S
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def load(self, pieces: Sequence[Piece], fingerprint: str, step: int | None = None) -> dict[str, Any] | None:
        """Put the newest sound checkpoint (or that of `step`) into the pieces; returns its counters, or None.

        One that is damaged, or that another training left (`fingerprint` in its counters differs), is passed over and
        said. Raises `DataError` for one of another architecture.
        """
        self.wait()
        for path in _newest_first(self.folder):
            if step is not None and _step_of(path) != step:
                continue
            counters = self._read(path, pieces, fingerprint)
            if counters is not None:
                self.saved = _step_of(path)
                self._steps = [found for found in map(_step_of, _newest_first(self.folder)) if found <= self.saved]
                return counters
        return None

    def load_weights(self, pieces: Sequence[Piece], step: int) -> bool:
        """Put the weights of one checkpoint into the pieces; tells whether it was there and sound."""
        self.wait()
        path = self.folder / f"{PREFIX}{step:08d}"
        state, problem = self._verified(path)
        if problem:
            self._say(f"{path.name} {problem}")
            return False
        stored = stored_regions(path, _read_regions(path, state))
        for piece in pieces:
            if piece.name.startswith("model/"):
                fill(piece, stored[piece.name])
        return True

    def _read(self, path: Path, pieces: Sequence[Piece], fingerprint: str) -> dict[str, Any] | None:
        state, problem = self._verified(path, fingerprint)
        if problem:
            self._say(f"{path.name} {problem}")
            return None
        stored = stored_regions(path, _read_regions(path, state))
        check_fits(pieces, stored, path.name, whole=self.strategy.world == 1)
        for piece in pieces:
            if piece.name in stored:
                fill(piece, stored[piece.name])
        # With more processes than there were, the new ones take the random state of the first.
        rank = self.strategy.rank if self.strategy.rank < state["world"] else 0
        with safe_open(path / f"rank-{rank:04d}.safetensors", framework="pt") as shard:
            names = {randomness.CPU, randomness.CUDA} & set(shard.keys())
            randomness.put_back({name: shard.get_tensor(name) for name in names}, self.strategy.device)
        randomness.put_back_plain(json.loads((path / f"rank-{rank:04d}.json").read_text())["random"])
        counters: dict[str, Any] = state["counters"]
        return counters

    def _verified(self, path: Path, fingerprint: str | None = None) -> tuple[dict[str, Any], str]:
        """Return a checkpoint's state, and what is wrong with it; the processes share the hashing and all agree."""
        state, problem = {}, ""
        try:
            state = json.loads((path / STATE).read_text())
            if fingerprint is not None and state["counters"]["fingerprint"] != fingerprint:
                problem = "was left by another training; not used"
            else:
                mine = list(state["sha256"].items())[self.strategy.rank :: self.strategy.world]
                wrong = [name for name, digest in mine if sha256_of_file(path / name) != digest]
                problem = f"is damaged ({wrong[0]}); trying the one before it, or starting over" if wrong else ""
        except (OSError, ValueError, KeyError, TypeError) as error:
            problem = f"cannot be read ({error}); trying the one before it, or starting over"
        if self.strategy.any(bool(problem)) and not problem:
            problem = "is damaged; trying the one before it, or starting over"
        return state, problem

    def _copied(self, key: str, tensor: Tensor) -> Tensor:
        """Copy a tensor to the host, into the same memory each time."""
        there = self._host.get(key)
        if there is None or there.shape != tensor.shape or there.dtype != tensor.dtype:
            pinned = tensor.device.type == "cuda"
            there = self._host[key] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
        return there.copy_(tensor.detach(), non_blocking=True)

    def _guarded(
        self, tensors: dict[str, Tensor], facts: dict[str, Any], counters: dict[str, Any], also: frozenset[int | None]
    ) -> None:
        """Write in the thread; what goes wrong is kept for `wait`."""
        began = time.perf_counter()
        target = self.folder / f"{PREFIX}{counters['step']:08d}"
        writing = self.folder / f".{target.name}.{self._count}.writing"
        rank = f"rank-{self.strategy.rank:04d}"
        try:
            writing.mkdir(parents=True, exist_ok=True)
            facts["sha256"] = write_tensors(writing / f"{rank}.safetensors", tensors)
            write_atomically(writing / f"{rank}.json", json.dumps(facts).encode())
            if self.strategy.main:
                self._finish(writing, target, counters, also)
            self.saved = counters["step"]
        except BaseException as error:  # noqa: BLE001  raised again, or said, by `wait`
            self._failure = error
            if self.strategy.main:
                shutil.rmtree(writing, ignore_errors=True)
            elif writing.exists():
                (writing / f"{rank}.failed").touch()  # an empty file needs no space
        self.save_s = time.perf_counter() - began

    def _finish(self, writing: Path, target: Path, counters: dict[str, Any], also: frozenset[int | None]) -> None:
        """Give the folder its name when every process's part is there, and remove what is not kept."""
        ranks = [f"rank-{rank:04d}" for rank in range(self.strategy.world)]
        deadline = time.monotonic() + self.strategy.config.parallel.patience_s
        while not all((writing / f"{rank}.json").exists() for rank in ranks):
            failed = sorted(path.stem for path in writing.glob("*.failed"))
            if failed or time.monotonic() > min(deadline, self._deadline):
                raise EnvironmentProblem(f"{failed[0] if failed else 'a process'} did not write its part")
            time.sleep(0.01)
        digests: dict[str, str] = {}
        for rank in ranks:
            digests[f"{rank}.json"] = sha256_of_file(writing / f"{rank}.json")
            digests[f"{rank}.safetensors"] = json.loads((writing / f"{rank}.json").read_text())["sha256"]
        state = {"counters": counters, "world": self.strategy.world, "sha256": digests}
        (writing / STATE).write_text(json.dumps(state, indent=1))
        sync_folder(writing)
        shutil.rmtree(target, ignore_errors=True)
        rename_durably(writing, target)
        self._steps = [step for step in self._steps if step < counters["step"]] + [counters["step"]]
        keep = {*self._steps[-self.kept :], *also}
        self._steps = [step for step in self._steps if step in keep]
        for path in _newest_first(self.folder):
            if _step_of(path) not in self._steps:
                shutil.rmtree(path, ignore_errors=True)


def _read_regions(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    ranks = [f"rank-{rank:04d}" for rank in range(state["world"])]
    return {f"{rank}.safetensors": json.loads((path / f"{rank}.json").read_text())["regions"] for rank in ranks}


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{PREFIX}[0-9]*"), reverse=True)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix(PREFIX))
