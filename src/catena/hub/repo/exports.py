"""Datasets as files: a Parquet file for each split, written when first read and kept in `<workspace>/exports`.

The folder is a copy that may be removed at any time (`catena gc` and every erasure do): what is read again is written
again. A commit's list of files is made from it once.
"""

from __future__ import annotations

import re
import shutil
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from catena.core.digest import sha256_of_file
from catena.core.errors import IntegrityError
from catena.core.types import DatasetVersion
from catena.hub.datasets import BATCH_ROWS, Dataset
from catena.hub.files import sync_folder
from catena.hub.locks import file_lock
from catena.hub.repo.records import LARGE, RepoFile, git_blob, pointer_id
from catena.hub.rows import HASH
from catena.hub.store import Store

FOLDER = "exports"
WHOLE = "train"
"""What clients call rows that are in no split."""


def split_word(split: str) -> str:
    """Return a split's name as clients allow it."""
    return WHOLE if split == "all" else re.sub(r"\W+", "_", split) or WHOLE


def exported_files(store: Store, dataset: DatasetVersion) -> tuple[RepoFile, ...]:
    """Return the files of a dataset version, which are written where they are not there."""
    folder = export_folder(store, dataset)
    return tuple(_described(folder, path, dataset.digest) for path in sorted(folder.rglob("*.parquet")))


def export_path(store: Store, file: RepoFile) -> Path:
    """Return where an exported file is, written anew if it is gone; raises `IntegrityError` where its bytes differ."""
    dataset = store.resolve(file.dataset or "", DatasetVersion)
    path = export_folder(store, dataset) / file.path
    if not path.exists() or path.stat().st_size != file.size:
        raise IntegrityError(
            f"{file.path} is written differently than before by the libraries that are installed now",
            hint="Ask for the newest commit again after a new version of the dataset.",
        )
    return path


def export_folder(store: Store, dataset: DatasetVersion) -> Path:
    """Return the folder with a version's Parquet files; it appears by one rename."""
    folder = store.root / FOLDER / dataset.digest
    if folder.exists():
        return folder
    with file_lock(store.root / "locks" / f"export-{dataset.digest[:16]}.lock"):
        if folder.exists():
            return folder
        temporary = folder.with_name(f".{uuid.uuid4().hex[:12]}")
        try:
            _write(store.open_dataset(dataset), temporary / "data")
            sync_folder(temporary)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def drop_exports(store: Store) -> None:
    """Remove every export: after an erasure none may hold what is gone."""
    shutil.rmtree(store.root / FOLDER, ignore_errors=True)


def _write(dataset: Dataset, folder: Path) -> None:
    folder.mkdir(parents=True)
    table = dataset.open_table()
    columns = [name for name in table.schema.names if name != HASH]
    schema = pa.schema([table.schema.field(name) for name in columns])
    opened: dict[str, Any] = {}
    try:
        for batch in table.scanner(columns=columns, scan_in_order=True, batch_size=BATCH_ROWS).to_batches():
            splits = batch["_split"].to_pylist()
            for split in dict.fromkeys(splits):
                word = split_word(split or "all")
                if word not in opened:
                    path = folder / f"{word}-00000-of-00001.parquet"
                    opened[word] = parquet.ParquetWriter(path, schema, compression="zstd")
                mask = pa.array([one == split for one in splits])
                opened[word].write_batch(batch.filter(mask))
        if not opened:
            parquet.write_table(schema.empty_table(), folder / f"{WHOLE}-00000-of-00001.parquet")
    finally:
        for writer in opened.values():
            writer.close()


def _described(folder: Path, path: Path, dataset: str) -> RepoFile:
    size, digest = path.stat().st_size, sha256_of_file(path)
    large = size >= LARGE
    oid = pointer_id(digest, size) if large else git_blob(path.read_bytes())
    name = path.relative_to(folder).as_posix()
    return RepoFile(path=name, size=size, sha256=digest, oid=oid, large=large, where="export", dataset=dataset)
