"""The hub as an ASGI application: each request is taken apart, admitted, answered.

serve/hub/target.py    what a path asks for, and which action it needs        serve/hub/door.py     who may
serve/hub/reading.py   JSON of what is there     serve/hub/files.py   bytes   serve/hub/writing.py  pushes
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import orjson
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from catena.core.errors import CatenaError, environment_problem
from catena.govern.access import Access
from catena.govern.roles import Principal
from catena.hub.repo.card import FRONT, front_matter
from catena.hub.repo.exports import export_path
from catena.hub.repo.listing import Listing
from catena.hub.repo.moving import moved_to
from catena.hub.repo.records import RepoCommit
from catena.hub.repo.repos import EntryNotFound, RepoNotFound, Repos
from catena.hub.repo.tree import listing
from catena.hub.store import Store
from catena.serve.endpoint import Gone
from catena.serve.hosts import LoopbackHosts
from catena.serve.hub import reading
from catena.serve.hub.answers import answer_to, refuse
from catena.serve.hub.bodies import fields
from catena.serve.hub.config import HubConfig
from catena.serve.hub.door import ANYBODY, Door, owner_of
from catena.serve.hub.files import FileAnswer
from catena.serve.hub.target import PREFIXES, Target, target_of
from catena.serve.hub.writing import Writing

PAGE = 1000
NO_XET_PATH = "large-files-need/HF_HUB_DISABLE_XET=1"
NO_XET = "this hub has no Xet store: set HF_HUB_DISABLE_XET=1 for the client, or raise hub.inline_bytes on the server"


@dataclass(frozen=True, slots=True)
class Call:
    """One request on its way."""

    scope: Scope
    receive: Receive
    target: Target
    query: Mapping[str, str]
    principal: Principal

    @property
    def base(self) -> str:
        """The address under which the client reached us."""
        host = next((value.decode("latin-1") for name, value in self.scope["headers"] if name == b"host"), "localhost")
        return f"{self.scope.get('scheme', 'http')}://{host}"


class Hub:
    """The application; `act` is told of every change, for the audit."""

    def __init__(
        self,
        store: Store,
        config: HubConfig,
        access: Access | None = None,
        act: Callable[[dict[str, Any]], Any] = lambda event: None,
    ) -> None:
        self.store, self.config = store, config
        self.repos = Repos(store)
        self.listing = Listing(self.repos)
        self.door = Door(access, config)
        self.writing = Writing(self.repos, config, self.door, act)
        self._handlers: dict[str, Callable[[Call], Awaitable[ASGIApp]]] = {
            "health": self._health,
            "whoami": self._whoami,
            "list": self._list,
            "info": self._info,
            "revision": self._info,
            "tree": self._tree,
            "paths-info": self._paths_info,
            "refs": self._refs,
            "commits": self._commits,
            "resolve": self._resolve,
            "validate-yaml": self._validate_yaml,
            "xet-read-token": self._no_xet,
            "xet-write-token": self._no_xet,
            **self.writing.handlers(),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        try:
            answer = await self._answer(scope, receive)
        except Gone:
            return
        except CatenaError as error:
            answer = answer_to(error)
        except Exception as error:  # noqa: BLE001  the boundary: it is logged, and the client learns no more than 500
            known = environment_problem(error, self.store.root) or self.store.files.away(error)
            answer = answer_to(known or error)
        await answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive) -> ASGIApp:
        raw = scope.get("raw_path") or scope["path"].encode()
        target = target_of(raw.decode("latin-1").partition("?")[0])
        if target is None and raw.strip(b"/") == NO_XET_PATH.encode():
            return refuse(400, NO_XET)
        if target is None:
            return refuse(404, f"there is no {scope['path'][:200]} on this hub")
        if target.action(scope["method"]) is None:
            return refuse(405, f"{scope['method']} is not offered for {scope['path'][:200]}")
        principal = await self.door.admit(scope, target)
        query = dict(_pairs(scope))
        if target.name:
            anybody = principal is ANYBODY
            private = anybody and await asyncio.to_thread(self.repos.private, target.kind, target.name)
            self.door.require_name(principal, target, private=private)
        try:
            return await self._handlers[target.verb](Call(scope, receive, target, query, principal))
        except RepoNotFound:
            there = await asyncio.to_thread(self._moved, scope, target, principal) if target.name else None
            if there is None:
                raise
            return RedirectResponse(there, 307)

    def _moved(self, scope: Scope, target: Target, principal: Principal) -> str | None:
        """Return the address of what was asked for under the name that its repository has now, to whom may know it."""
        new = moved_to(self.repos, target.kind, target.name)
        hidden = principal is ANYBODY and new is not None and self.repos.private(target.kind, new)
        if new is None or hidden or not principal.may_use(new):
            return None
        raw = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1").partition("?")[0]
        before = f"/api/{target.kind}s/" if raw.startswith("/api/") else f"/{PREFIXES[target.kind]}"
        rest = raw.removeprefix(before)
        if rest == raw or not rest.startswith(target.name):
            return None
        query = scope.get("query_string", b"").decode("latin-1")
        return f"{before}{new}{rest[len(target.name) :]}" + (f"?{query}" if query else "")

    async def _commit(self, call: Call) -> RepoCommit:
        target, revision = call.target, call.target.revision or "main"
        hot = self.repos.hot(target.kind, target.name, revision)
        if hot is not None:
            return hot
        return await asyncio.to_thread(self.repos.commit, target.kind, target.name, revision)

    async def _health(self, call: Call) -> Response:
        await asyncio.to_thread(self.repos.stamp)
        return JSONResponse({"status": "ok"})

    async def _whoami(self, call: Call) -> Response:
        who, role = owner_of(call.principal), "write" if call.principal.may("push") else "read"
        token = {"displayName": call.principal.key or who, "role": role}
        body: dict[str, Any] = {
            "type": "user",
            "id": who,
            "name": who,
            "fullname": call.principal.subject,
            "email": None,
            "isPro": False,
            "orgs": [],
        }
        return JSONResponse({**body, "auth": {"type": "access_token", "accessToken": token}})

    async def _list(self, call: Call) -> Response:
        query = call.query
        tags = [tag for key, value in _pairs(call.scope) if key == "filter" for tag in value.split(",")]
        find = partial(
            self.listing.find,
            call.target.kind,
            search=query.get("search", ""),
            author=query.get("author", ""),
            tags=tags,
            private=call.principal is not ANYBODY,
        )
        found = [item for item in await asyncio.to_thread(find) if call.principal.may_use(item.name)]
        if query.get("sort") in ("createdAt", "created_at"):
            found.sort(key=lambda item: item.created, reverse=True)
        if query.get("direction") == "1":
            found.reverse()
        wanted = _number(query.get("limit"), PAGE)
        return _page([reading.listed(item) for item in _cut(found, query, wanted)], len(found), wanted, call)

    async def _info(self, call: Call) -> Response:
        commit, target = await self._commit(call), call.target

        def facts() -> Any:
            history = self.repos.log(target.kind, target.name, commit.id)
            times = (history[-1][1].time, commit.time) if history else (commit.time, commit.time)
            private = self.repos.private(target.kind, target.name)
            return reading.info(self.store, commit, times, blobs="blobs" in call.query, private=private)

        return JSONResponse(await asyncio.to_thread(facts), headers={"x-repo-commit": commit.id})

    async def _tree(self, call: Call) -> Response:
        commit, query = await self._commit(call), call.query
        recursive, expand = _flag(query, "recursive"), _flag(query, "expand")
        # In a thread: the tree of a commit is made when it is first asked for.
        items = await asyncio.to_thread(lambda: listing(commit.tree, call.target.path, recursive=recursive))
        if not items and call.target.path.strip("/"):
            raise EntryNotFound(f"there is no folder {call.target.path!r} in {commit.name!r}")
        wanted = min(_number(query.get("limit"), PAGE), PAGE)
        shown = [reading.entry(item, commit, expand=expand) for item in _cut(items, query, wanted)]
        return _page(shown, len(items), wanted, call, {"x-repo-commit": commit.id})

    async def _paths_info(self, call: Call) -> Response:
        commit, body = await self._commit(call), await fields(call.scope, call.receive, self.config.idle_s)
        paths = body.get("paths") or []
        given = [paths] if isinstance(paths, str) else [path for path in paths if isinstance(path, str)]
        expand = str(body.get("expand", "")).strip("[]'").lower() == "true"
        found = await asyncio.to_thread(reading.paths_info, commit, given, expand=expand)
        return JSONResponse(found, headers={"x-repo-commit": commit.id})

    async def _refs(self, call: Call) -> Response:
        await self._commit(call)
        refs = await asyncio.to_thread(self.repos.refs, call.target.kind, call.target.name)
        return JSONResponse(reading.refs_body(refs))

    async def _commits(self, call: Call) -> Response:
        target = call.target
        found = await asyncio.to_thread(self.repos.log, target.kind, target.name, target.revision or "main")
        wanted = min(_number(call.query.get("limit"), PAGE), PAGE)
        shown = [reading.history_entry(id, commit) for id, commit in _cut(found, call.query, wanted)]
        return _page(shown, len(found), wanted, call, {"x-total-count": str(len(found))})

    async def _resolve(self, call: Call) -> ASGIApp:
        commit = await self._commit(call)
        headers = {"x-repo-commit": commit.id}
        try:
            file = reading.file_of(commit, call.target.path)
        except EntryNotFound as error:
            response = answer_to(error)
            response.headers.update(headers)  # clients then remember that this commit does not have it
            return response
        headers["etag"] = f'"{file.etag}"'
        if file.large:
            headers |= {"x-linked-etag": f'"{file.sha256}"', "x-linked-size": str(file.size)}
        if file.text is not None:
            return FileAnswer(io.BytesIO(file.text.encode()), file.size, file.path, headers)
        if file.where == "export":
            path = await asyncio.to_thread(export_path, self.store, file)
            return FileAnswer(path, file.size, file.path, headers)
        place = self.store.files.local_path(file.sha256)
        if place is None:
            stream = await asyncio.to_thread(self.store.files.open, file.sha256)
            return FileAnswer(stream, file.size, file.path, headers)
        if _size_of(place) != file.size:
            return refuse(410, f"the bytes of {file.path!r} are no longer in the store", code="EntryNotFound")
        return FileAnswer(place, file.size, file.path, headers)

    async def _validate_yaml(self, call: Call) -> Response:
        body = await fields(call.scope, call.receive, self.config.idle_s)
        content = str(body.get("content") or "")
        broken = bool(FRONT.match(content)) and not await asyncio.to_thread(front_matter, content)
        errors = [{"message": "the metadata between the --- lines is no YAML mapping"}] if broken else []
        return JSONResponse({"errors": errors, "warnings": []}, 400 if broken else 200)

    async def _no_xet(self, call: Call) -> Response:
        # Clients show the address that refused, and not what it said.
        return RedirectResponse(f"{call.base}/{NO_XET_PATH}", 307, {"x-error-message": NO_XET})


def build_hub(
    store: Store,
    config: HubConfig | None = None,
    *,
    access: Access | None = None,
    hosts: tuple[str, ...] = (),
    act: Callable[[dict[str, Any]], Any] = lambda event: None,
) -> ASGIApp:
    """Return the hub over a workspace. `access` asks for keys; without it whoever reaches it may do everything."""
    return LoopbackHosts(Hub(store, config or HubConfig(), access, act), names=hosts)


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _pairs(scope: Scope) -> list[tuple[str, str]]:
    return parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)


def _flag(query: Mapping[str, str], name: str) -> bool:
    return query.get(name, "").lower() in ("true", "1")


def _number(text: str | None, default: int) -> int:
    return max(1, int(text)) if text and text.isdecimal() else default


def _cut(items: Any, query: Mapping[str, str], wanted: int) -> Any:
    start = int(query["cursor"]) if query.get("cursor", "").isdecimal() else 0
    return items[start : start + wanted]


def _page(shown: Any, total: int, wanted: int, call: Call, headers: Mapping[str, str] | None = None) -> Response:
    """Return one page of a list; the head says where the next one is."""
    start = int(call.query["cursor"]) if call.query.get("cursor", "").isdecimal() else 0
    sent = dict(headers or {})
    if start + wanted < total:
        kept = [(key, value) for key, value in _pairs(call.scope) if key != "cursor"]
        query = urlencode([*kept, ("cursor", str(start + wanted))])
        path = (call.scope.get("raw_path") or b"/").decode("latin-1").partition("?")[0]
        sent["link"] = f'<{call.base}{path}?{query}>; rel="next"'
    return Response(orjson.dumps(shown), headers=sent, media_type="application/json")
