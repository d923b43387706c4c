"""Work on a dataset's rows in shards: on the processors of this machine, or on a Ray cluster.

    dataset -> shards of 2048 rows -> a folder for each, in ctx.workdir/shards -> put together in the order of the rows

How the rows are cut does not depend on who works on them, so the result is the same for any number of workers. A
shard's folder is named by a digest of the rows, the operation, its code and its config, and appears in one rename: what
is there is finished, whoever made it. A killed worker costs its shard, a killed run what its workers were at.

An operation is named "module:function" and does `function(shard, config, folder) -> None`. Ray's nodes must see the
workspace under the same path.
"""

from __future__ import annotations

import importlib
import json
import shutil
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import lance
import orjson
import pyarrow as pa

from catena.core.config import Config
from catena.core.digest import digest_of
from catena.core.errors import DataError, UsageError
from catena.core.sample import Sample
from catena.core.stage import Context, code_digest
from catena.core.types import DatasetVersion, Shape
from catena.data.executors import EXECUTORS, processors
from catena.hub.datasets import SAMPLES, DatasetWriter
from catena.hub.rows import schema_of, to_row, to_sample

SHARD_ROWS = 2048
# Rows that are read at once: few, because one row may hold a whole book.
BATCH_ROWS = 64
# Fewer rows than this are done here, without workers and files: starting a worker takes a second.
SMALL_ROWS = 4096
ROWS_FILE = "rows.arrow"

Operation = Callable[["Shard", Config, Path], None]
RowFunction = Callable[[Sample], "Outcome"]


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows `start` to `stop` of a table, and what is to be done with them. Plain values: it travels as JSON."""

    operation: str
    config_class: str
    config: Mapping[str, Any]
    table: str
    revision: int
    """Version of the Lance table."""
    shape: Shape
    start: int
    stop: int
    target: str
    """The folder that holds the result once it is finished."""

    @property
    def rows(self) -> int:
        """Rows of this shard."""
        return self.stop - self.start

    def to_json(self) -> str:
        """Return the line that a worker is given."""
        return json.dumps(asdict(self))

    def batches(self, *, whole: bool = True) -> Iterator[pa.RecordBatch]:
        """Yield the rows in their stored order, some at a time; of a document only the text, unless `whole`."""
        columns = schema_of(self.shape).names if self.shape != "document" or whole else ["text"]
        scanner = lance.dataset(self.table, version=self.revision).scanner(
            columns=columns, offset=self.start, limit=self.rows, scan_in_order=True, batch_size=BATCH_ROWS
        )
        yield from scanner.to_batches()

    def texts(self) -> Iterator[list[str]]:
        """Yield the texts of the rows, some at a time."""
        for batch in self.batches(whole=False):
            if self.shape == "document":
                yield batch.column("text").to_pylist()
            else:
                yield [to_sample(row).text for row in batch.to_pylist()]


def run_shard(shard: Shard) -> None:
    """Do a shard's work, unless its result is there; it appears whole or not at all."""
    target = Path(shard.target)
    if target.exists():
        return
    config = cast("type[Config]", _named(shard.config_class)).model_validate(shard.config)
    draft = target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}")
    draft.mkdir(parents=True)
    try:
        cast("Operation", _named(shard.operation))(shard, config, draft)
        draft.rename(target)
    except OSError:
        if not target.exists():  # else another worker was faster, with the same result
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _named(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def work_shards(
    ctx: Context,
    source: DatasetVersion,
    operation: str,
    cfg: Config,
    *,
    label: str,
    unit: str = "rows",
    workers: int = 0,
    shard_rows: int = 0,
) -> list[Path]:
    """Run an operation on every shard of a dataset; returns the folders in the order of the rows.

    `workers` (default: the context's, else one for each processor) changes nothing but the time it takes. `shard_rows`
    is for operations that take so long that 2,048 rows are too many to lose, or to wait for.
    """
    if ctx.executor not in EXECUTORS:
        raise UsageError(f"there is no executor {ctx.executor!r}", hint=f"There are: {', '.join(EXECUTORS)}.")
    ctx.store.open_dataset(source)  # verifies the files once, before anybody reads them
    shards = cut(ctx, source, operation, cfg, shard_rows or SHARD_ROWS)
    waiting = [shard for shard in shards if not Path(shard.target).exists()]
    before = source.rows - sum(shard.rows for shard in waiting)
    progress = ctx.progress(label, source.rows, unit, done=before)
    row_bytes = sum(split.bytes for split in source.splits.values()) / max(source.rows, 1)
    started, lock, done = time.monotonic(), threading.Lock(), [0]

    def finished(shard: Shard) -> None:
        with lock:
            done[0] += shard.rows
            speed = done[0] * row_bytes / 1e6 / max(time.monotonic() - started, 1e-9)
            progress.advance(shard.rows, mb_per_s=round(speed, 2))

    for left in ctx.workdir.glob("shards/.*"):
        shutil.rmtree(left, ignore_errors=True)  # drafts of workers that were killed
    count = min(workers or ctx.workers or processors(), len(waiting))
    if waiting:
        EXECUTORS[ctx.executor](waiting, count, finished)
    progress.finish()
    return [Path(shard.target) for shard in shards]


def cut(ctx: Context, source: DatasetVersion, operation: str, cfg: Config, rows: int) -> list[Shard]:
    """Return a dataset's shards of `rows` rows: always the same for the same rows, operation, code and config."""
    kind = type(cfg)
    values = cfg.model_dump(mode="json")
    code = code_digest(operation.partition(":")[0], *cfg.modules())
    shards = []
    for start in range(0, source.rows, rows):
        stop = min(start + rows, source.rows)
        key = digest_of([operation, code, values, source.content, start, stop])
        shards.append(
            Shard(
                operation=operation,
                config_class=f"{kind.__module__}:{kind.__qualname__}",
                config=values,
                table=str((ctx.store.datasets / source.table / SAMPLES).absolute()),
                revision=source.revision,
                shape=source.shape,
                start=start,
                stop=stop,
                target=str((ctx.workdir / "shards" / key[:32]).absolute()),
            )
        )
    return shards


# -- functions of one row ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one row: a sample that goes on or, with a reason, stays back."""

    sample: Sample
    reason: str = ""
    detail: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Whatever the stage adds up over all rows."""


class _RowsConfig(Config):
    maker: str
    """"module:function" that makes the function of a row from the config."""
    config_class: str
    """The class of its config."""
    config: dict[str, Any]
    """Its config's values."""
    chosen: tuple[str, ...] = ()
    """Modules that the values choose."""

    def modules(self) -> tuple[str, ...]:
        """Return the modules whose code decides the result."""
        return (self.maker.partition(":")[0], *self.chosen)


def map_rows(
    ctx: Context, source: DatasetVersion, maker: str, cfg: Config, *, label: str, unit: str = "rows"
) -> Iterator[Outcome]:
    """Yield what a pure function of one row makes of each row, in order; large datasets go to workers.

    `maker` names "module:function", which is given the config and returns the function `(sample) -> Outcome`.
    """
    if source.rows <= SMALL_ROWS and ctx.executor == "local":
        function = cast("RowFunction", _named(maker)(cfg))
        samples = ctx.store.open_dataset(source).samples()
        yield from map(function, ctx.progress(label, source.rows, unit).over(samples))
        return
    kind = type(cfg)
    wrapped = _RowsConfig(
        maker=maker,
        config_class=f"{kind.__module__}:{kind.__qualname__}",
        config=cfg.model_dump(mode="json"),
        chosen=cfg.modules(),
    )
    for folder in work_shards(ctx, source, "catena.data.shards:shard_of_rows", wrapped, label=label, unit=unit):
        yield from _outcomes(folder / ROWS_FILE)


def write_rows(out: DatasetWriter, outcomes: Iterable[Outcome]) -> Counter[str]:
    """Write what goes on and what stays back; returns the sum of what the outcomes count."""
    counts: Counter[str] = Counter()
    for outcome in outcomes:
        counts.update(outcome.counts)
        if outcome.reason:
            out.reject(outcome.sample, outcome.reason, outcome.detail)
        else:
            out.add(outcome.sample)
    return counts


def shard_of_rows(shard: Shard, cfg: Config, folder: Path) -> None:
    """Do a function of one row on a shard's rows: the operation behind `map_rows`."""
    assert isinstance(cfg, _RowsConfig)
    config = cast("type[Config]", _named(cfg.config_class)).model_validate(cfg.config)
    function = cast("RowFunction", _named(cfg.maker)(config))
    schema = schema_of(shard.shape, rejects=True).append(pa.field("_counts", pa.string()))
    with pa.OSFile(str(folder / ROWS_FILE), "wb") as stream, pa.ipc.new_stream(stream, schema) as writer:
        for batch in shard.batches():
            rows = [_row_of(function(to_sample(row))) for row in batch.to_pylist()]
            try:
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
            except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError) as error:
                raise DataError(f"rows {shard.start} to {shard.stop} do not fit their columns: {error}") from error


def _row_of(outcome: Outcome) -> dict[str, Any]:
    counts = orjson.dumps(dict(outcome.counts)).decode() if outcome.counts else None
    return {**to_row(outcome.sample), "_reason": outcome.reason, "_detail": outcome.detail, "_counts": counts}


def _outcomes(path: Path) -> Iterator[Outcome]:
    with pa.OSFile(str(path), "rb") as stream, pa.ipc.open_stream(stream) as reader:
        for batch in reader:
            for row in batch.to_pylist():
                reason, detail, counts = row.pop("_reason"), row.pop("_detail"), row.pop("_counts")
                yield Outcome(to_sample(row), reason, detail, orjson.loads(counts) if counts else {})


def read_shard(line: str) -> Shard:
    """Return the shard of a worker's line."""
    return Shard(**json.loads(line))
