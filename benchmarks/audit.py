"""The audit: how fast it is written with every record on the disk, how fast it is checked, what tampering is found.

    python benchmarks/audit.py [--records 50000] [--mutations 10000] [--output benchmarks/results/audit.json]

Records are requests of about 1.2 KB, of 100 subjects. `durable` means that whoever wrote a record was told only after a
sync of the disk. A plain append with a sync for each record, by the same machine in the same run, stands beside it. The
mutations are those of the tests: a flipped bit, a record dropped, swapped, added, duplicated, replaced, a tail cut off.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.govern.mutations import KINDS, mutate

from catena.govern.audit.forget import erase
from catena.govern.audit.log import Log
from catena.govern.audit.reading import Query, entries
from catena.govern.audit.verify import verify
from catena.govern.config import AuditConfig

CONFIG = AuditConfig()
WORDS = (
    *("the", "parcel", "that", "was", "ordered", "on", "Monday", "has", "not", "come", "yet", "and"),
    *("nobody", "answers", "when", "will", "it", "be", "here", "please", "tell"),
)


def body(number: int) -> dict[str, Any]:
    """A request of about 1.2 KB that is not the same as the one before."""
    draw = random.Random(number)
    text = " ".join(draw.choices(WORDS, k=180))
    return {"kind": "request", "id": f"{number:016x}", "model": "helper", "body": {"messages": [{"content": text}]}}


def written(log: Log, count: int, waiting: int) -> float:
    """Write so many records, at most so many unanswered at once; return records a second."""
    entries_ = [body(number) for number in range(1000)]
    free, left, ended = threading.Semaphore(waiting), [count], threading.Event()

    def done(problem: Exception | None) -> None:
        assert problem is None
        left[0] -= 1
        free.release()
        if left[0] == 0:
            ended.set()

    began = time.perf_counter()
    for number in range(count):
        free.acquire()
        log.write(f"subject {number % 100}", lambda number=number: entries_[number % 1000], done)
    ended.wait()
    return count / (time.perf_counter() - began)


def plain_sync(folder: Path, count: int) -> float:
    """Append and sync records one by one, with nothing else; return records a second."""
    data = json.dumps(body(1)).encode()
    descriptor = os.open(folder / "plain", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    began = time.perf_counter()
    for _ in range(count):
        os.write(descriptor, data)
        os.fdatasync(descriptor)
    seconds = time.perf_counter() - began
    os.close(descriptor)
    return count / seconds


def tampered(folder: Path, count: int) -> dict[str, Any]:
    """Change a small log in so many ways; return how many were found."""
    root = folder / "small"
    (root / "locks").mkdir(parents=True)
    with Log(root, CONFIG) as log:
        for number in range(50):
            log.act(body(number), f"subject {number % 5}")
    [path] = (root / "audit" / "segments").iterdir()
    original, draw = path.read_bytes(), random.Random(7)
    tried: Counter[str] = Counter()
    found: Counter[str] = Counter()
    missed = []
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        changed, what = mutate(original, kind, draw)
        if changed == original:
            continue
        path.write_bytes(changed)
        tried[kind] += 1
        if verify(root, CONFIG).sound:
            missed.append(what)
        else:
            found[kind] += 1
    path.write_bytes(original)
    assert verify(root, CONFIG, deep=True).sound
    return {"tried": dict(tried), "found": dict(found), "missed": missed}


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--records", type=int, default=50_000)
    options.add_argument("--mutations", type=int, default=10_000)
    options.add_argument("--output", type=Path)
    given = options.parse_args()
    result: dict[str, Any] = {"machine": {"cpus": os.cpu_count(), "python": platform.python_version()}}
    with tempfile.TemporaryDirectory() as name:
        folder, root = Path(name), Path(name) / "large"
        (root / "locks").mkdir(parents=True)
        result["plain_append_and_sync_per_second"] = round(plain_sync(folder, 1000))
        with Log(root, CONFIG) as log:
            result["durable_one_at_a_time_per_second"] = round(written(log, 2000, 1))
            result["durable_64_waiting_per_second"] = round(written(log, given.records // 2, 64))
            result["durable_512_waiting_per_second"] = round(written(log, given.records, 512))
            began = time.perf_counter()
            checked = verify(root, CONFIG)
            result["verified_per_second"] = round(checked.records / (time.perf_counter() - began))
            began = time.perf_counter()
            deep = verify(root, CONFIG, deep=True)
            result["opened_and_verified_per_second"] = round(deep.records / (time.perf_counter() - began))
            result["bytes_per_record"] = round(checked.bytes / checked.records)
            readable = sum(entry["kind"] == "request" for entry in entries(root, CONFIG, Query(subject="subject 7")))
            erase(log, "subject 7", reason="benchmark", by="benchmark")
            after = verify(root, CONFIG, deep=True)
            kinds = Counter(entry["kind"] for entry in entries(root, CONFIG))
            result["erasure"] = {"readable_before": readable, "unreadable_after": kinds["erased"], "sound": after.sound}
        result["sound"] = checked.sound and deep.sound
        result["mutations"] = tampered(folder, given.mutations)
    print(json.dumps(result, indent=2))
    if given.output:
        given.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
