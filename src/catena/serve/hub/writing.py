"""What clients write: repositories, bytes, commits, branches, tags. Checked first, then one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Scope

from catena.core.errors import NotFound, UsageError
from catena.hub.repo import pushing
from catena.hub.repo.moving import rename
from catena.hub.repo.records import RepoFile, RepoKind
from catena.hub.repo.repos import Conflict, RepoNotFound, Repos, checked_name
from catena.hub.repo.spool import Spool
from catena.hub.repo.tree import checked_path
from catena.serve.hub.answers import NotOffered, TooLarge
from catena.serve.hub.bodies import declared_length, fields, pieces, poured
from catena.serve.hub.config import HubConfig
from catena.serve.hub.door import Door, owner_of
from catena.serve.hub.ndjson import OID, CommitBody
from catena.serve.hub.reading import file_of
from catena.serve.hub.target import PREFIXES, Target

if TYPE_CHECKING:
    from catena.serve.hub.app import Call

KINDS: Mapping[str, RepoKind] = {"model": "model", "dataset": "dataset"}


class Writing:
    """The handlers that change something."""

    def __init__(self, repos: Repos, config: HubConfig, door: Door, act: Callable[[dict[str, Any]], Any]) -> None:
        self._repos, self._config, self._door, self._act = repos, config, door, act

    def handlers(self) -> dict[str, Callable[[Call], Awaitable[ASGIApp]]]:
        """Return the handler of each verb."""
        return {
            "create": self._create,
            "delete": self._delete,
            "move": self._move,
            "settings": self._settings,
            "preupload": self._preupload,
            "lfs": self._lfs,
            "upload": self._upload,
            "verify": self._verify,
            "commit": self._commit,
            "branch": self._branch,
            "discussions": self._discussions,
            "tag": self._tag,
        }

    async def _do(self, call: Call, what: str, work: Callable[[], Any], **about: Any) -> Any:
        """Do one change in a thread, and tell the audit."""
        done = await asyncio.to_thread(work)
        principal = call.principal
        event = {"act": f"hub.{what}", "about": principal.subject, "key": principal.key, **about}
        await asyncio.to_thread(self._act, event)
        return done

    async def _fields(self, call: Call) -> dict[str, Any]:
        return await fields(call.scope, call.receive, self._config.idle_s)

    # -- repositories ------------------------------------------------------------------------------------------------

    def _named(self, call: Call, body: Mapping[str, Any]) -> tuple[RepoKind, str]:
        kind = KINDS.get(str(body.get("type") or "model"))
        if kind is None:
            raise NotOffered(f"this hub has models and datasets, and no {str(body['type'])[:40]}s")
        organization, name = body.get("organization"), str(body.get("name") or "")
        if "/" not in name and (organization or call.target.verb == "create"):
            # Clients cannot read the address of a repository without an owner: a new one is the asker's.
            name = f"{organization or owner_of(call.principal)}/{name}"
        name = checked_name(name)
        self._door.require_name(call.principal, Target("create", kind, name), private=False)
        return kind, name

    async def _create(self, call: Call) -> Response:
        body = await self._fields(call)
        kind, name = self._named(call, body)
        private = bool(body.get("private")) or body.get("visibility") == "private"
        url = f"{call.base}/{PREFIXES[kind]}{name}"
        by = call.principal.subject
        try:
            work = partial(pushing.create, self._repos, kind, name, by=by, private=private)
            await self._do(call, "create", work, kind=kind, repo=name)
        except Conflict as error:
            return JSONResponse({"error": error.message, "url": url}, 409, {"x-error-message": error.message})
        return JSONResponse({"url": url, "name": name, "id": name, "private": private})

    async def _delete(self, call: Call) -> Response:
        kind, name = self._named(call, await self._fields(call))
        work = partial(pushing.delete, self._repos, kind, name, by=call.principal.subject)
        await self._do(call, "delete", work, kind=kind, repo=name)
        return JSONResponse({"success": True})

    async def _move(self, call: Call) -> Response:
        body = await self._fields(call)
        kind, old = self._named(call, {"type": body.get("type"), "name": body.get("fromRepo")})
        _, new = self._named(call, {"type": body.get("type"), "name": body.get("toRepo")})
        work = partial(rename, self._repos, kind, old, new, by=call.principal.subject)
        await self._do(call, "move", work, kind=kind, repo=old, to=new)
        return JSONResponse({"success": True, "url": f"{call.base}/{PREFIXES[kind]}{new}"})

    async def _settings(self, call: Call) -> Response:
        target, body = call.target, await self._fields(call)
        if "visibility" in body or "private" in body:
            private = bool(body.get("private")) or body.get("visibility") == "private"
            work = partial(
                pushing.set_private, self._repos, target.kind, target.name, private, by=call.principal.subject
            )
            await self._do(call, "settings", work, kind=target.kind, repo=target.name, private=private)
        return JSONResponse({"success": True})

    # -- bytes -------------------------------------------------------------------------------------------------------

    async def _preupload(self, call: Call) -> Response:
        target, body = call.target, await self._fields(call)
        commit = await asyncio.to_thread(self._repos.commit, target.kind, target.name, target.revision or "main")
        present = commit.by_path()
        asked = body.get("files")
        if not isinstance(asked, list) or len(asked) > self._config.max_files:
            raise UsageError("`files` is no list")
        answers = []
        for one in asked:
            path = checked_path(str(one.get("path", "")) if isinstance(one, dict) else "")
            size = one.get("size")
            size = size if isinstance(size, int) and size >= 0 else 0
            if size > self._config.max_file_bytes:
                raise TooLarge(f"{path!r} is longer than {self._config.max_file_bytes} bytes")
            gone = path.endswith(".parquet") and uploads_first(call.scope)
            mode = "lfs" if size and (gone or size > self._config.inline_bytes) else "regular"
            there = present.get(path)
            oid = None if there is None else (there.sha256 if mode == "lfs" else there.oid)
            if there is not None and mode == "regular" and there.large:
                oid = None  # its Git id is that of the pointer: the client could not compare
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return JSONResponse({"files": answers, "commitOid": commit.id})

    async def _lfs(self, call: Call) -> Response:
        target, body = call.target, await self._fields(call)
        if body.get("operation") != "upload":
            raise NotOffered("files are downloaded by their address, not by Git LFS")
        if not await asyncio.to_thread(self._repos.exists, target.kind, target.name):
            raise RepoNotFound(f"there is no {target.kind} {target.name!r} on this hub")
        answers: list[dict[str, Any]] = []
        for one in body.get("objects") or ():
            oid, size = str(one.get("oid", "")), one.get("size")
            if not OID.fullmatch(oid) or not isinstance(size, int) or size < 0:
                raise UsageError("an object is named by no SHA-256 and size")
            entry: dict[str, Any] = {"oid": oid, "size": size, "authenticated": True}
            if size > self._config.max_file_bytes:
                entry["error"] = {"code": 413, "message": f"longer than {self._config.max_file_bytes} bytes"}
            elif await asyncio.to_thread(self._repos.store.files.size, oid) != size:
                href = f"{call.base}/lfs/{oid}"
                upload = {"href": f"{href}?{self._door.signed(oid, size)}"}
                entry["actions"] = {"upload": upload, "verify": {"href": f"{href}/verify"}}
            answers.append(entry)
        body = {"transfer": "basic", "objects": answers, "hash_algo": "sha256"}
        return JSONResponse(body, media_type="application/vnd.git-lfs+json")

    async def _upload(self, call: Call) -> Response:
        oid = call.target.path
        size = self._door.require_signed(oid, call.query)
        if declared_length(call.scope) > size:
            raise TooLarge(f"more than the {size} bytes that were asked for")
        with Spool(self._repos.store) as spool:
            await poured(pieces(call.scope, call.receive, size, self._config.idle_s), spool.write)
            if spool.size != size:
                raise UsageError(f"{spool.size} of {size} bytes arrived", hint="Upload the file again.")
            if spool.sha256 != oid:
                raise UsageError("the bytes are not those of their SHA-256", hint="Upload the file again.")
            await asyncio.to_thread(spool.store)
        return Response(status_code=200)

    async def _verify(self, call: Call) -> Response:
        body = await self._fields(call)
        oid, size = str(body.get("oid", "")), body.get("size")
        stored = await asyncio.to_thread(self._repos.store.files.size, oid) if OID.fullmatch(oid) else None
        if stored is None or stored != size:
            raise NotFound(f"the bytes of {oid[:12]!r} are not here", hint="Upload them again.")
        return JSONResponse({"success": True})

    # -- commits -----------------------------------------------------------------------------------------------------

    async def _commit(self, call: Call) -> Response:
        target, repos = call.target, self._repos
        head = await asyncio.to_thread(repos.commit, target.kind, target.name, target.revision or "main")

        def source(path: str, revision: str) -> RepoFile:
            return file_of(repos.commit(target.kind, target.name, revision) if revision else head, path)

        with closing(CommitBody(repos.store, self._config, source)) as body:
            limit = self._config.max_commit_bytes
            await poured(pieces(call.scope, call.receive, limit, self._config.idle_s), body.feed)
            await asyncio.to_thread(body.finish)
        branch = (target.revision or "main").removeprefix("refs/heads/")
        what = pushing.Push(
            tuple(body.operations),
            message=str(body.header.get("summary") or "")[:2000],
            description=str(body.header.get("description") or "")[:20000],
            by=call.principal.subject,
            parent=str(body.header.get("parentCommit") or ""),
        )
        about = {"kind": target.kind, "repo": target.name, "branch": branch, "files": len(body.operations)}
        where, proposed = f"{call.base}/{PREFIXES[target.kind]}{target.name}", {}
        if call.query.get("create_pr") in ("1", "true"):
            propose = partial(pushing.propose, repos, target.kind, target.name, branch, what)
            commit, number = await self._do(call, "propose", propose, **about)
            proposed = {"pullRequestUrl": f"{where}/discussions/{number}"}
        else:
            work = partial(pushing.push, repos, target.kind, target.name, branch, what)
            commit = await self._do(call, "commit", work, **about)
        pickles = [file.path for file in commit.files if file.pickle]
        said = f"flagged as pickles, which run code when they are loaded: {', '.join(pickles)}" if pickles else ""
        url = f"{where}/commit/{commit.id}"
        return JSONResponse({"success": True, "commitOid": commit.id, "commitUrl": url, "hookOutput": said, **proposed})

    async def _discussions(self, call: Call) -> Response:
        target = call.target
        if target.path != "merge":
            raise NotOffered(
                "of discussions only the merge of a proposal is offered: commit with create_pr to make one"
            )
        work = partial(
            pushing.accept, self._repos, target.kind, target.name, target.revision, by=call.principal.subject
        )
        commit = await self._do(call, "accept", work, kind=target.kind, repo=target.name, number=target.revision)
        return JSONResponse({"success": True, "commitOid": commit.id})

    async def _branch(self, call: Call) -> Response:
        target, by = call.target, call.principal.subject
        if call.scope["method"] == "DELETE":
            work = partial(pushing.delete_branch, self._repos, target.kind, target.name, target.revision, by=by)
            await self._do(call, "branch.delete", work, kind=target.kind, repo=target.name, branch=target.revision)
            return JSONResponse({"success": True})
        at = str((await self._fields(call)).get("startingPoint") or "")
        make = partial(pushing.create_branch, self._repos, target.kind, target.name, target.revision, at, by=by)
        await self._do(call, "branch", make, kind=target.kind, repo=target.name, branch=target.revision)
        return JSONResponse({"success": True}, 201)

    async def _tag(self, call: Call) -> Response:
        target, by = call.target, call.principal.subject
        if call.scope["method"] == "DELETE":
            work = partial(pushing.delete_tag, self._repos, target.kind, target.name, target.revision, by=by)
            await self._do(call, "tag.delete", work, kind=target.kind, repo=target.name, tag=target.revision)
            return JSONResponse({"success": True})
        tag = str((await self._fields(call)).get("tag") or "")
        make = partial(pushing.create_tag, self._repos, target.kind, target.name, tag, target.revision, by=by)
        await self._do(call, "tag", make, kind=target.kind, repo=target.name, tag=tag)
        return JSONResponse({"success": True}, 201)


def uploads_first(scope: Scope) -> bool:
    """Tell whether the client is `datasets`, which uploads a file and deletes it before it commits."""
    return any(name == b"user-agent" and value.startswith(b"datasets/") for name, value in scope["headers"])
