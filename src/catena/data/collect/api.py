"""The stage `data.collect_api`: a paged JSON API becomes documents, one for each record.

    config -> pages (number, offset, cursor, link) -> records -> items -> what is new since the version before

The inner machine is `next_place`: from one answer to the place of the next, without any network.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal
from urllib.parse import urljoin

import orjson
from pydantic import AfterValidator, Field, model_validator

from catena.core.config import Config
from catena.core.digest import sha256
from catena.core.errors import RemoteError
from catena.core.sample import dig
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion, Shape
from catena.data.collect.client import Answer, AuthConfig, Client, HttpConfig, origin, plain_url, shown
from catena.data.collect.cursor import Past, collect, later
from catena.data.collect.fragment import fragment_text
from catena.data.collect.journal import Batch, Item, Position

LINK = re.compile(r"<([^<>]*)>((?:[^\"<,]|\"[^\"]*\")*)")
REL = re.compile(r";\s*rel\s*=\s*(?:\"([^\"]*)\"|([^\s;,\"]+))", re.IGNORECASE)
Paging = Literal["none", "page", "offset", "cursor", "link"]


class ApiConfig(Config):
    """Which API to ask, how it pages, and what of a record becomes a row."""

    url: Annotated[str, AfterValidator(plain_url)]
    """Address of the first page, without user and password."""
    params: dict[str, str] = Field(default_factory=dict)
    """Further query parameters of every request; never secrets, which belong into `auth`."""
    headers: dict[str, str] = Field(default_factory=dict)
    """Further headers of every request; never secrets."""
    auth: AuthConfig = Field(default_factory=AuthConfig)
    """Who asks."""
    http: HttpConfig = Field(default_factory=HttpConfig)
    """How patiently and how gently."""
    records: str = ""
    """Dotted path to the list of records in the answer, for example `data.items`; empty when the answer is the list."""
    id: str = "id"
    """Dotted path to what identifies a record."""
    text: tuple[str, ...] = ()
    """Dotted paths to the record's texts, joined by a blank line; empty keeps the record as JSON (media)."""
    html: bool = False
    """The texts are HTML."""
    metadata: tuple[str, ...] = ()
    """Dotted paths to keep as metadata; empty keeps every plain field of the record that is not text."""
    link: str = ""
    """Dotted path to the record's own address; becomes the row's source."""
    paging: Paging = "none"
    """`page` counts pages, `offset` counts records, `cursor` hands back a token, `link` follows an address."""
    page_param: str = "page"
    """Query parameter of the page number, offset, or token."""
    first_page: int = Field(1, ge=0)
    """Number of the first page."""
    size_param: str = ""
    """Query parameter of the page size; empty sends none."""
    page_size: int = Field(100, ge=1, le=100_000)
    """Records to ask for at once, when `size_param` is set."""
    next: str = ""
    """Dotted path to the token (`cursor`) or the next address (`link`; empty takes the Link header, RFC 8288)."""
    updated: str = ""
    """Dotted path to when a record was changed: a number or an ISO 8601 time. With it, later runs ask for less."""
    since_param: str = ""
    """Query parameter that takes the latest `updated` seen; the server sends only what changed since then."""
    since: str = ""
    """Where the first run begins, sent as `since_param`."""
    newest_first: bool = False
    """The server lists the latest changes first: a later run stops at the first page without anything new."""
    max_pages: int = Field(10_000, ge=1)
    """Most requests of one run; the next run goes on there."""
    max_records: int = Field(1_000_000, ge=1)
    """About the most records of one run (the page under way is finished); the next run goes on there."""
    max_record_bytes: int = Field(10_000_000, ge=1)
    """Largest record, as JSON; a larger one is rejected."""
    license: str | None = None
    """Licence of what is collected, for example an SPDX identifier."""

    @model_validator(mode="after")
    def _fields_fit(self) -> ApiConfig:
        if self.paging == "cursor" and not self.next:
            raise ValueError("paging by cursor needs `next`, the path to the token of the next page")
        if (self.since_param or self.newest_first) and not self.updated:
            raise ValueError("`since_param` and `newest_first` need `updated`, the path to when a record was changed")
        return self


@stage("data.collect_api", volatile=True)
def collect_api(ctx: Context, cfg: ApiConfig) -> DatasetVersion:
    """Collect the records of a paged JSON API, and later only what is new or changed there.

    With `text`, rows are documents; without, they are media of type application/json. Reasons of rejects: `bad_record`,
    `missing_id`, `missing_text`, `too_large`, `lone_surrogate`, `not_storable`. Raises `RemoteError` when the server
    fails; a second try goes on at the page where the first stopped.
    """
    return collect(ctx, ApiConnector(cfg, Client(cfg.http, cfg.auth, home=cfg.url)), cfg.max_records)


@dataclass
class ApiConnector:
    """One API. A position holds the place of the next page and the digest of the page before."""

    cfg: ApiConfig
    client: Client
    name: str = "collect_api"
    passing: frozenset[str] = frozenset()
    shape: Shape = field(init=False)
    license: str | None = field(init=False)
    identity: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        limits = {"http", "auth", "max_pages", "max_records", "page_size"}
        self.shape = "document" if self.cfg.text else "media"
        self.license = self.cfg.license
        self.identity = {"connector": self.name, **self.cfg.model_dump(mode="json", exclude=limits)}

    def batches(self, past: Past) -> Iterator[Batch]:
        """Ask page after page."""
        cfg = self.cfg
        since = past.cursor.get("since") or cfg.since or None
        position = dict(past.position or {"place": first_place(cfg), "newest": since, "page": ""})
        for _ in range(cfg.max_pages):
            answer = self._ask(position["place"], since)
            found = self._records(answer)
            items, newest = [], position["newest"]
            anything_new = since is None
            for record in found:
                changed = dig(record, cfg.updated) if cfg.updated else None
                anything_new = anything_new or later(since, changed) != since
                newest = later(newest, changed)
                items.append(self._item(record))
            place = next_place(cfg, position["place"], answer, len(found), self.client.without_secret)
            ends = place is None or (cfg.newest_first and not anything_new)
            page = sha256(answer.body)
            if not ends and (page == position["page"] or place == position["place"]):
                raise RemoteError(
                    f"{shown(cfg.url)} sends the same page again and again",
                    hint="See whether `paging`, `page_param` and `next` are what this API uses.",
                )
            position = {"place": place, "newest": newest, "page": page}
            yield Batch(tuple(items), position, {"since": newest} if ends else None)
            if ends:
                return
        yield Batch((), position, stop=True)

    def _ask(self, place: Mapping[str, Any], since: Any) -> Answer:
        cfg = self.cfg
        params: dict[str, Any] = {}
        if "url" not in place:
            params = {**cfg.params, **place["params"]}
            if cfg.size_param:
                params[cfg.size_param] = cfg.page_size
            if cfg.since_param and since is not None:
                params[cfg.since_param] = since
        return self.client.get(place.get("url", cfg.url), params, {"Accept": "application/json", **cfg.headers})

    def _records(self, answer: Answer) -> list[Any]:
        found = dig(answer.json(), self.cfg.records)
        if not isinstance(found, list):
            raise RemoteError(
                f"{shown(answer.url)} holds no list at {self.cfg.records or 'its top'!r}",
                hint="Set `records` to the dotted path of the list of records.",
            )
        return found

    def _item(self, record: Any) -> Item:
        """Make a row of a record, or a reject."""
        cfg = self.cfg
        raw = canonical_json(record)
        place = f"{shown(cfg.url)}#{sha256(raw)[:16]}"
        if not isinstance(record, dict):
            return self._reject(place, raw, "bad_record", f"a {type(record).__name__} is no record")
        key = dig(record, cfg.id)
        if isinstance(key, bool) or not isinstance(key, str | int) or key == "":
            return self._reject(place, raw, "missing_id", f"nothing to identify it at {cfg.id!r}")
        name = f"{key:020d}" if isinstance(key, int) and key >= 0 else str(key)
        source = str(dig(record, cfg.link) or "") if cfg.link else ""
        source = source or f"{shown(cfg.url)}#{key}"
        if len(raw) > cfg.max_record_bytes:
            return self._reject(name, b"", "too_large", f"{len(raw)} bytes of JSON", source)
        if not cfg.text:
            data: dict[str, Any] = {"content": raw, "media_type": "application/json"}
            return Item(name, data=data, metadata=self._facts(record), source=source)
        texts = [dig(record, path) for path in cfg.text]
        if not all(isinstance(text, str | int | float) or text is None for text in texts):
            return self._reject(name, raw, "bad_record", f"one of {', '.join(cfg.text)} is no text", source)
        parts = [fragment_text(str(text)) if cfg.html else str(text) for text in texts if text is not None]
        joined = "\n\n".join(part for part in parts if part.strip())
        if not joined:
            return self._reject(name, raw, "missing_text", f"no text at {', '.join(cfg.text)}", source)
        return Item(name, data={"text": joined}, metadata=self._facts(record), source=source)

    def _facts(self, record: Mapping[str, Any]) -> dict[str, Any]:
        if self.cfg.metadata:
            return {path: dig(record, path) for path in self.cfg.metadata}
        if not self.cfg.text:
            return {}  # the record itself is the row
        return {k: v for k, v in record.items() if k not in (*self.cfg.text, "key") and not isinstance(v, dict | list)}

    def _reject(self, key: str, raw: bytes, reason: str, detail: str, source: str = "") -> Item:
        data: dict[str, Any] = {"content": raw, "media_type": "application/json"}
        if self.shape == "document":
            data = {"text": raw.decode()}
        return Item(key, "reject", data, source=source or shown(self.cfg.url), reason=reason, detail=detail)


def canonical_json(record: Any) -> bytes:
    """Return a record as JSON with sorted keys; in ASCII where UTF-8 cannot hold it (lone surrogates)."""
    try:
        return orjson.dumps(record, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError:
        return json.dumps(record, sort_keys=True).encode()


def first_place(cfg: ApiConfig) -> dict[str, Any]:
    """Return the place of the first page: the parameters to ask with."""
    match cfg.paging:
        case "page":
            return {"params": {cfg.page_param: cfg.first_page}}
        case "offset":
            return {"params": {cfg.page_param: 0}}
        case _:
            return {"params": {}}


def next_place(
    cfg: ApiConfig, place: Mapping[str, Any], answer: Answer, count: int, clean: Any = lambda url: url
) -> Position | None:
    """Return the place of the page behind this answer, or None at the end.

    Numbered pages end with an empty one and not with a short one: servers send fewer records than they are asked for.
    Raises `RemoteError` when the next address is on another host.
    """
    match cfg.paging:
        case "page" | "offset":
            step = 1 if cfg.paging == "page" else count
            return {"params": {cfg.page_param: place["params"][cfg.page_param] + step}} if count else None
        case "cursor":
            token = dig(answer.json(), cfg.next)
            return {"params": {cfg.page_param: token}} if token not in (None, "", False) else None
        case "link":
            target = dig(answer.json(), cfg.next) if cfg.next else next_link(answer.headers.get("link", ""))
            if not target:
                return None
            url = clean(urljoin(answer.url, str(target)))
            if origin(url) != origin(cfg.url):
                raise RemoteError(f"the next page of {shown(cfg.url)} is on another server: {shown(url)}")
            return {"url": url}
        case _:
            return None


def next_link(header: str) -> str:
    """Return the address of `rel="next"` in a Link header (RFC 8288), or nothing."""
    for target, rest in LINK.findall(header):
        relation = REL.search(rest)
        if relation and "next" in (relation[1] or relation[2]).lower().split():
            return str(target)
    return ""
