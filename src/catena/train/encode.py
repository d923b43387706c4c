"""Encoding: a run of samples to one shard of tokens. Also the process that does it beside others.

    python -m catena.train.encode FOLDER        numbers of shards come in as lines; each is read from <number>.part

It ends when its input does, and so with the process that started it (shards.py), however that one ends.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from catena.core.config import Config
from catena.core.errors import CatenaError
from catena.hub.files import write_atomically
from catena.train.artifacts import UNKNOWN
from catena.train.overlong import Counts, Overlong, fit_conversations, fit_document
from catena.train.tokens import ARRAYS, Shard, make_shard

ENCODED_AT_ONCE = 256
PLAN = "plan.json"


class Encoding(Config):
    """What decides the tokens of a sample."""

    shape: Literal["document", "conversation"]
    """Of the samples."""
    tokenizer: str
    """Folder of the tokenizer."""
    vocabulary: str = ""
    """Digest of the artifact that the tokenizer is from."""
    longest: int = Field(default=0, ge=0)
    """Most tokens of a conversation, most inputs of a document; 0: any number."""
    overlong: Overlong = "cut"
    """What to do with a longer one."""


def encode_items(plan: Encoding, words: Any, items: Sequence[Any], first: int) -> Shard:
    """Encode texts, or lists of messages, whose numbers in their split begin at `first`."""
    counts = Counts()
    rows: list[tuple[Sequence[int], Sequence[bool] | None]] = []
    samples: list[int] = []
    for start in range(0, len(items), ENCODED_AT_ONCE):
        some, number = items[start : start + ENCODED_AT_ONCE], first + start
        if plan.shape == "conversation":
            numbers, encoded, done = fit_conversations(some, words, plan.longest or sys.maxsize, plan.overlong, number)
            rows += [(row.ids, row.mask) for row in encoded]
            samples += numbers
            for reason, count in done.items():
                counts[reason] = counts.get(reason, 0) + count
        else:
            for at, pieces in enumerate(_documents(plan, words, some, number, counts), number):
                rows += [(piece, None) for piece in pieces]
                samples += [at] * len(pieces)
    if words.unk_token_id is not None and plan.shape == "document":
        unknown = sum(int(np.count_nonzero(np.asarray(ids) == words.unk_token_id)) for ids, _ in rows)
        counts.update({UNKNOWN: unknown} if unknown else {})
    return make_shard(rows, samples, counts, len(words))


def _documents(
    plan: Encoding, words: Any, texts: Sequence[str], number: int, counts: Counts
) -> list[list[Sequence[int]]]:
    from catena.models.tokenizer import encode_texts

    found: list[list[Sequence[int]]] = []
    for at, ids in enumerate(encode_texts(words, texts), number):
        if not ids:
            counts.add("empty")
        whole = [*ids, words.eos_token_id]
        longest = plan.longest or len(whole)
        found.append(fit_document(whole, longest, plan.overlong, at, counts) if ids else [])
    return found


def write_shard(folder: Path, number: int, shard: Shard) -> None:
    """Write a shard's arrays, each in one rename, and then the JSON that says that they are there."""
    files = {}
    for name in ARRAYS:
        array = getattr(shard, name)
        if array is None:
            continue
        target = folder / f"{number:05d}.{name}.npy"
        writing = target.with_name(f".{target.name}.{os.getpid()}")
        with writing.open("wb") as stream:
            np.save(stream, array, allow_pickle=False)
            stream.flush()
            os.fsync(stream.fileno())
        writing.rename(target)
        files[name] = target.stat().st_size
    facts = {
        "tokens": len(shard.tokens),
        "rows": len(shard.lengths),
        "largest": int(shard.tokens.max()) if len(shard.tokens) else -1,
        "counts": dict(shard.counts),
        "files": files,
    }
    write_atomically(folder / f"{number:05d}.json", json.dumps(facts).encode())


def main(folder: Path) -> None:
    """Make the shards whose numbers come in; a problem that a person can mend is told as a line of JSON."""
    from catena.core.cpu import guard
    from catena.models.tokenizer import load_tokenizer

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each process has one processor
    guard()
    plan = Encoding.model_validate_json((folder / PLAN).read_text())
    words = load_tokenizer(Path(plan.tokenizer))
    for line in sys.stdin:
        part = folder / f"{int(line):05d}.part"
        first, items = json.loads(part.read_text(encoding="utf-8"))
        try:
            shard = encode_items(plan, words, items, first)
        except CatenaError as error:
            sys.stdout.write(json.dumps({"message": error.message, "hint": error.hint}) + "\n")
            sys.exit(1)
        write_shard(folder, int(line), shard)
        part.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
