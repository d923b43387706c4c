"""Token shards: a split is encoded once, by several processes, into files that every step and every process maps.

Of the processes of one training, process 0 writes and the others look for `done.json`; none waits inside a collective
for another one's tokenizer. What a killed run has finished stays, and the next one goes on from there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

from catena.core.digest import digest_of
from catena.core.errors import DataError, EnvironmentProblem
from catena.core.events import Progress
from catena.core.stage import Context
from catena.hub.files import write_atomically
from catena.train.encode import PLAN, Encoding, encode_items, write_shard
from catena.train.tokens import Tokens, open_tokens

SHARD_CHARACTERS = 8_000_000
"""Of text in one shard: some 2 million tokens, 5 seconds of one processor."""
DONE = "done.json"
LOOK_EVERY_S = 0.1
GIVE_UP_AFTER_S = 900.0
"""A process gives up when the one that encodes has written nothing for so long."""


def process_rank() -> int:
    """Return which process of its training this is (torchrun's contract); 0 for the only one."""
    return int(os.environ.get("RANK", "0"))


def token_shards(
    ctx: Context, name: str, plan: Encoding, words: Any, items: Iterable[Any], facts: tuple[str, int]
) -> Tokens:
    """Return the tokens of `items` (texts or lists of messages), encoded now or by a run before.

    `facts`: what tells these items from any others, and how many there are. Raises `DataError` for a sample that cannot
    be encoded, `EnvironmentProblem` where a process ends or nothing comes from the one that encodes.
    """
    folder = ctx.workdir / f"tokens-{quote(name, safe='')}"
    key = digest_of([facts[0], plan.model_dump(mode="json", exclude={"tokenizer"}), len(words), SHARD_CHARACTERS])
    if process_rank():
        return _wait(folder, key)
    found = _finished(folder, key)
    if found is not None:
        return found
    _begin(folder, key, plan)
    progress = ctx.progress(f"encode {name}", facts[1], f"{plan.shape}s")
    parts = _parts(plan, items)
    first = next(parts, (0, []))
    second = next(parts, None)
    if second is None:
        write_shard(folder, 0, encode_items(plan, words, first[1], first[0]))
    else:
        _in_processes(ctx, folder, _chained(first, second, parts), progress)
    progress.advance(facts[1] - progress.done)
    progress.finish()
    write_atomically(folder / DONE, json.dumps({"key": key}).encode())
    return open_tokens(folder)


def _begin(folder: Path, key: str, plan: Encoding) -> None:
    """Make the folder, or empty one that something else left; shards of the same work stay."""
    kept = folder / "key"
    if not kept.exists() or kept.read_text() != key:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_atomically(kept, key.encode())
    (folder / DONE).unlink(missing_ok=True)
    for path in folder.glob("[0-9]*.json"):
        _forget_damaged(path)
    write_atomically(folder / PLAN, plan.model_dump_json().encode())


def _finished(folder: Path, key: str) -> Tokens | None:
    """Return the tokens of a folder that is complete and of the same work; an incomplete or damaged one gives None."""
    try:
        if json.loads((folder / DONE).read_text())["key"] != key:
            return None
        return open_tokens(folder)
    except (OSError, ValueError, KeyError):
        return None


def _forget_damaged(path: Path) -> None:
    """Take back a shard's JSON where its arrays are not as it says."""
    try:
        sizes = json.loads(path.read_text())["files"]
        sound = all((path.parent / f"{path.stem}.{name}.npy").stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        sound = False
    if not sound:
        path.unlink(missing_ok=True)


def _wait(folder: Path, key: str) -> Tokens:
    """Look until process 0 has finished."""
    seen, since = None, time.monotonic()
    while True:
        found = _finished(folder, key) if (folder / DONE).exists() else None
        if found is not None:
            return found
        now = sorted(path.name for path in folder.glob("*")) if folder.exists() else None
        if now != seen:
            seen, since = now, time.monotonic()
        if time.monotonic() - since > GIVE_UP_AFTER_S:
            raise EnvironmentProblem(
                f"process {process_rank()} waited {GIVE_UP_AFTER_S:g} s for the tokens that process 0 writes",
                hint=f"Look at what process 0 said; all processes must see the same folder {folder.parent}.",
            )
        time.sleep(LOOK_EVERY_S)


def _parts(plan: Encoding, items: Iterable[Any]) -> Iterator[tuple[int, list[Any]]]:
    """Cut the items into runs of about `SHARD_CHARACTERS`; yields (number of the first, items)."""
    first, held, size = 0, [], 0
    for number, item in enumerate(items):
        held.append(item)
        size += len(item) if plan.shape == "document" else sum(len(turn["content"]) for turn in item)
        if size >= SHARD_CHARACTERS:
            yield first, held
            first, held, size = number + 1, [], 0
    if held:
        yield first, held


def _chained(*parts: Any) -> Iterator[tuple[int, list[Any]]]:
    yield from parts[:-1]
    yield from parts[-1]


def _in_processes(ctx: Context, folder: Path, parts: Iterator[tuple[int, list[Any]]], progress: Progress) -> None:
    """Give each part to one of the processes in turn, as a file; wait for all. Finished shards are not made again."""
    command = [sys.executable, "-m", "catena.train.encode", str(folder)]
    most = ctx.workers or os.cpu_count() or 1
    ends: list[int] = []
    with ExitStack() as held:
        team: dict[int, _Child] = {}
        for number, (first, items) in enumerate(parts):
            ends.append(first + len(items))
            if (folder / f"{number:05d}.json").exists():
                continue
            place = number % most
            if place not in team:
                process = subprocess.Popen(command, stdin=-1, stdout=-1, text=True, encoding="utf-8")
                team[place] = held.enter_context(_Child(process))
            # Written whole before its number is told; in memory there is only this one.
            part = json.dumps([first, items], ensure_ascii=False)
            write_atomically(folder / f"{number:05d}.part", part.encode("utf-8"))
            team[place].give(number)
        for child in team.values():
            child.end()
        while any(child.process.poll() is None for child in team.values()):
            done = sum(1 for number in range(len(ends)) if (folder / f"{number:05d}.json").exists())
            progress.advance(ends[done - 1] - progress.done if done else 0)
            time.sleep(LOOK_EVERY_S)
        for child in team.values():
            child.check()


class _Child:
    """A process that encodes; ended with the block."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()

    def give(self, number: int) -> None:
        """Name a part to encode."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{number}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self.check()

    def end(self) -> None:
        """Say that no more parts come."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            self.check()

    def check(self) -> None:
        """Raise what went wrong, once the process has ended."""
        assert self.process.stdout is not None
        said = self.process.stdout.read()
        if self.process.wait():
            lines = said.strip().splitlines()
            if lines:
                problem = json.loads(lines[-1])
                raise DataError(problem["message"], hint=problem["hint"])
            raise EnvironmentProblem(
                f"a process that encodes text ended with status {self.process.returncode}",
                hint="A process that is killed most often ran out of memory: set fewer workers.",
            )
