"""The stage `data.collect_hf`: a dataset in Hugging Face's format, from a folder or a hub, becomes samples.

    README card (licence, configs, splits) + data files -> new and changed files -> rows -> samples of one shape

A hub is spoken to over its HTTP protocol: any address that HF_ENDPOINT names, without a package of its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal
from urllib.parse import quote

from pydantic import Field, model_validator

from catena.core.config import Config
from catena.core.digest import digest_of
from catena.core.errors import DataError, NotFound, RemoteError
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion, Shape
from catena.data.collect.card import Card, read_card
from catena.data.collect.client import AuthConfig, Client, HttpConfig, HttpError
from catena.data.collect.cursor import Past, collect, in_batches
from catena.data.collect.folder import Folder, FolderConfig, Found
from catena.data.collect.hf_rows import BadFile, BadRow, rows_of, sample_of, shape_of
from catena.data.collect.journal import Batch, Item, Position

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
CARD = "README.md"
MAX_CARD = 1 << 20


class HfConfig(Config):
    """Which dataset, and how its columns become samples."""

    folder: str = ""
    """A folder with the dataset's files: a path or an fsspec address."""
    repo: str = ""
    """A dataset of a hub, for example `user/corpus`; in place of `folder`."""
    revision: str = "main"
    """Branch, tag or commit of `repo`."""
    endpoint: str = ""
    """Address of the hub; the environment variable HF_ENDPOINT if empty, and https://huggingface.co without one."""
    config: str = ""
    """Which configuration of the card to take (`config_name`); the card's default, or all files if empty."""
    shape: Literal["auto", "document", "conversation", "example", "media"] = "auto"
    """Shape of the samples; `auto` tells it from the column names of the first file."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Field of the sample to column, where names differ: `{text: article}`, `{input: question, output: answer}`."""
    id: str = ""
    """Column that identifies a row; file and line number do if empty."""
    max_bytes: int = Field(10_000_000_000, ge=1)
    """Largest file of a hub, in bytes; a larger one is rejected."""
    max_row_bytes: int = Field(50_000_000, ge=1)
    """Largest row; a larger one is rejected."""
    max_records: int = Field(10_000_000, ge=1)
    """About the most rows of one run; the next run goes on behind them."""
    auth: AuthConfig = Field(default_factory=AuthConfig)
    """Who asks the hub, for example bearer with `secret_env: HF_TOKEN`."""
    http: HttpConfig = Field(default_factory=HttpConfig)
    """How patiently and how gently the hub is asked; its `max_bytes` bounds listings only."""
    license: str | None = None
    """Licence; the card's if not given."""

    @model_validator(mode="after")
    def _one_place(self) -> HfConfig:
        if bool(self.folder) == bool(self.repo):
            raise ValueError("give a `folder`, or a `repo` of a hub")
        if self.repo and not REPOSITORY.fullmatch(self.repo):
            raise ValueError(f"{self.repo!r} is not the name of a dataset")
        return self


@stage("data.collect_hf", volatile=True)
def collect_hf(ctx: Context, cfg: HfConfig) -> DatasetVersion:
    """Collect a Hugging Face dataset (Parquet, JSON lines, JSON, CSV), and later only its new and changed files.

    Splits and licence come from the README card, or from file names (`train-00000-of-00001.parquet`, `test.csv`).
    `metadata`: file, row, and the columns that are no field of the sample. Reasons of rejects: `bad_row`, `bad_file`,
    `too_large`, `lone_surrogate`, `not_storable`, `gone`.
    """
    place: Place = HubPlace(ctx, cfg) if cfg.repo else FolderPlace(cfg)
    return collect(ctx, HfConnector.open(ctx, cfg, place), cfg.max_records)


class FolderPlace:
    """A dataset in a folder."""

    def __init__(self, cfg: HfConfig) -> None:
        self._folder = Folder(FolderConfig(url=cfg.folder))
        self.source = self._folder.source

    def files(self) -> list[Found]:
        """List the files."""
        return self._folder.files()

    @contextmanager
    def open(self, file: Found) -> Iterator[BinaryIO]:
        """Open a file."""
        with self._folder.open(file.path) as stream:
            yield stream


class HubPlace:
    """A dataset of a hub, at the commit that the revision stood for when the run began."""

    def __init__(self, ctx: Context, cfg: HfConfig) -> None:
        endpoint = (cfg.endpoint or os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        self._cfg, self._endpoint = cfg, endpoint
        self._client = Client(cfg.http, cfg.auth, home=endpoint)
        self._large = Client(cfg.http.model_copy(update={"max_bytes": cfg.max_bytes}), cfg.auth, home=endpoint)
        self._download = ctx.workdir / "download.part"
        self._commit = ""

    def source(self, path: str) -> str:
        """Return the address that rows carry: without the commit, so that a file that stays keeps its rows."""
        return f"{self._endpoint}/datasets/{self._cfg.repo}/resolve/{self._cfg.revision}/{path}"

    def files(self) -> list[Found]:
        """List the files of the revision; a file's mark is its blob."""
        url = f"{self._endpoint}/api/datasets/{self._cfg.repo}/revision/{quote(self._cfg.revision, safe='')}"
        try:
            facts = self._client.get(url, {"blobs": "true"}).json()
        except HttpError as error:
            if error.status not in (401, 404):
                raise
            raise NotFound(
                f"the hub shows no dataset {self._cfg.repo!r} at revision {self._cfg.revision!r}",
                hint="See whether the name is right; for a private one set `auth`.",
            ) from error
        if not isinstance(facts, dict) or not isinstance(facts.get("siblings"), list) or not facts.get("sha"):
            raise RemoteError(f"{self._endpoint} does not answer like a hub", hint="See `endpoint`.")
        self._commit = str(facts["sha"])
        listed = []
        for entry in facts["siblings"]:
            path = str(entry.get("rfilename", ""))
            # Without blobs, only the commit tells whether a file changed.
            mark = str((entry.get("lfs") or {}).get("sha256") or entry.get("blobId") or self._commit)
            if path and not path.startswith("/") and ".." not in path.split("/"):
                listed.append(Found(path, int(entry.get("size") or -1), mark))
        return sorted(listed, key=lambda file: file.path)

    @contextmanager
    def open(self, file: Found) -> Iterator[BinaryIO]:
        """Download a file and open it."""
        url = f"{self._endpoint}/datasets/{self._cfg.repo}/resolve/{self._commit}/{quote(file.path)}"
        try:
            with self._download.open("w+b") as stream:
                self._large.download(url, stream)
                stream.seek(0)
                yield stream
        finally:
            self._download.unlink(missing_ok=True)


Place = FolderPlace | HubPlace


@dataclass
class HfConnector:
    """One dataset. The cursor holds mark and number of rows of every file that was read to its end."""

    cfg: HfConfig
    place: Place
    files: list[Found]
    card: Card
    shape: Shape
    license: str | None
    name: str = "collect_hf"
    passing: frozenset[str] = frozenset()
    identity: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.identity = identity_of(self.cfg, self.license)

    @classmethod
    def open(cls, ctx: Context, cfg: HfConfig, place: Place) -> HfConnector:
        """List the files, read the card and find out the shape."""
        listed = place.files()
        card_file = next((file for file in listed if file.path == CARD), None)
        card = Card()
        if card_file is not None and card_file.size <= MAX_CARD:
            with place.open(card_file) as stream:
                card = read_card(stream.read(MAX_CARD).decode("utf-8", "replace"))
        files = [file for file in listed if card.split_of(file.path, cfg.config) is not None]
        if not files:
            raise DataError(
                f"{cfg.folder or cfg.repo} has no data file of a kind that is read",
                hint="Parquet, JSON lines, JSON and CSV are; see `config` if the card names several.",
            )
        license = cfg.license or card.license
        shape = cfg.shape if cfg.shape != "auto" else cls._shape_before(ctx, cfg, license)
        return cls(cfg, place, files, card, shape or cls._told_shape(cfg, place, files), license)

    @staticmethod
    def _shape_before(ctx: Context, cfg: HfConfig, license: str | None) -> Shape | None:
        """Return the shape that was told in an earlier run: no file has to be opened for it again."""
        latest = ctx.store.latest(ctx.name)
        if not isinstance(latest, DatasetVersion):
            return None
        same = latest.profile.get("cursor", {}).get("identity") == digest_of(identity_of(cfg, license))
        return latest.shape if same else None

    @staticmethod
    def _told_shape(cfg: HfConfig, place: Place, files: list[Found]) -> Shape:
        for file in files:
            try:
                with place.open(file) as stream:
                    first = next(iter(rows_of(stream, file.path, cfg.max_row_bytes, 0)), None)
            except BadFile:
                continue
            if isinstance(first, dict):
                return shape_of(first, cfg.columns)
        return "document"

    def batches(self, past: Past) -> Iterator[Batch]:
        """Read file after file; inside a file, a position is the number of rows that are done with."""
        start = {"read": past.cursor.get("read", {}), "file": "", "row": 0}
        position = past.position or start
        read = {path: dict(facts) for path, facts in position["read"].items()}
        with ExitStack() as stack:
            for file in self.files:
                if file.mark and read.get(file.path, {}).get("mark") == file.mark:
                    continue
                resumed = position["file"] == file.path and position.get("mark") == file.mark
                stream = self._read(file, read, position["row"] if resumed else 0)
                yield from stack.enter_context(_closing(in_batches(stream)))
                yield Batch((), {"read": read, "file": "", "row": 0})
        there = {file.path for file in self.files}
        gone = self._gone(past, read, there)
        read = {path: facts for path, facts in read.items() if path in there}
        yield Batch(tuple(gone), {"read": read, "file": "", "row": 0}, {"read": read})

    def _read(self, file: Found, read: dict[str, Any], start: int) -> Iterator[tuple[tuple[Item, ...], Position]]:
        split = self.card.split_of(file.path, self.cfg.config) or "train"
        row = start
        whole = f"{file.path}:"
        verdict = Item(whole, "gone")
        place = {"read": read, "file": file.path, "mark": file.mark}
        try:
            if file.size > self.cfg.max_bytes:
                raise BadFile("too_large", f"{file.size} bytes")
            with self.place.open(file) as stream:
                for found in rows_of(stream, file.path, self.cfg.max_row_bytes, start):
                    item = self._item(file, row, found, split)
                    row += 1
                    yield (item,), {**place, "row": row}
        except BadFile as problem:
            # The rows before the damage stay.
            source = self.place.source(file.path)
            facts = {"file": file.path}
            verdict = Item(whole, "reject", {}, facts, source, reason=problem.reason, detail=str(problem))
        read[file.path] = {"mark": file.mark, "rows": row}
        yield (verdict,), {"read": read, "file": "", "row": 0}

    def _item(self, file: Found, row: int, found: Mapping[str, Any] | BadRow, split: str) -> Item:
        """Make a sample of a row, or a reject."""
        key, source = f"{file.path}:{row:012d}", self.place.source(file.path)
        facts: dict[str, Any] = {"file": file.path, "row": row}
        if isinstance(found, BadRow):
            return Item(key, "reject", {}, facts, source, reason=found.reason, detail=found.detail)
        if self.cfg.id:
            name = found.get(self.cfg.id)
            if name is None or name == "":
                return Item(key, "reject", {}, facts, source, reason="missing_id", detail=f"nothing in {self.cfg.id}")
            key = f"{name:020d}" if isinstance(name, int) and name >= 0 else str(name)
        made = sample_of(found, self.shape, self.cfg.columns)
        if isinstance(made, BadRow):
            return Item(key, "reject", {}, facts, source, reason=made.reason, detail=made.detail)
        data, rest = made
        item = Item(key, data=data, metadata={**rest, **facts}, source=source, split=split)
        if item.size > self.cfg.max_row_bytes:
            return Item(key, "reject", {}, facts, source, reason="too_large", detail=f"{item.size} bytes")
        return item

    def _gone(self, past: Past, read: Mapping[str, Any], there: set[str]) -> Iterator[Item]:
        """Yield the rows of files that went or became shorter."""
        files, rows = past.known("file"), past.known("row")
        for key, path in files.items():
            row = rows[key]
            shorter = row is not None and not self.cfg.id and path in there and row >= read[path]["rows"]
            if path not in there or shorter:
                yield Item(key, "gone")


def identity_of(cfg: HfConfig, license: str | None) -> dict[str, Any]:
    """Return what decides which rows come and how they look."""
    only = {"folder", "repo", "revision", "config", "shape", "columns", "id", "max_row_bytes"}
    return {"connector": HfConnector.name, "license": license, **cfg.model_dump(mode="json", include=only)}


@contextmanager
def _closing(batches: Iterator[Batch]) -> Iterator[Iterator[Batch]]:
    """Let the file behind a generator be closed when the run ends in its middle."""
    try:
        yield batches
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()
