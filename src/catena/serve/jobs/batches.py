"""`/v1/batches`: a file of requests that is worked off in its own time.

validating -> in_progress -> finalizing -> completed
     |             |------> expired     (what is not answered by then stands in the error file)
     v             '------> cancelling -> cancelled
  failed (a line is wrong: nothing was asked)
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from catena.serve.endpoint import decode, read_body, require_json
from catena.serve.jobs.config import JobsConfig
from catena.serve.jobs.files import Files
from catena.serve.jobs.forms import BatchRequest, known_only, limit_of, page
from catena.serve.jobs.queue import Queue
from catena.serve.jobs.tables import Job
from catena.serve.jobs.who import kept, tenant_of
from catena.serve.wire import WireError, parse

MOST_BODY = 1 << 16
TIMES = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


class Batches:
    """Batches of tenants."""

    def __init__(self, queue: Queue, files: Files, config: JobsConfig, wake: Callable[[str], None]) -> None:
        self._queue, self._files, self._config, self._wake = queue, files, config, wake

    async def create(self, request: Request) -> Response:
        """Take a batch in."""
        require_json(request.scope)
        asked = parse(BatchRequest, decode(await read_body(request.scope, request.receive, MOST_BODY)))
        asked.check()
        tenant = tenant_of(request.scope)
        source = await self._files.find(asked.input_file_id, tenant, "input_file_id")
        if source.purpose != "batch":
            message = f"the purpose of {source.id} is {source.purpose!r} and not 'batch'"
            raise WireError(message, param="input_file_id", code="invalid_purpose")
        moment, lifetime = time.time(), asked.output_expires_after
        body = {
            "completion_window": asked.completion_window,
            "metadata": asked.metadata or None,
            "keep_s": None if lifetime is None else lifetime.seconds,
            "total": 0,
        }
        job = Job(
            id=f"batch_{secrets.token_hex(16)}",
            kind="batch",
            tenant=tenant,
            status="validating",
            created=moment,
            expires=moment + asked.seconds,
            endpoint=asked.endpoint,
            input=source.id,
            who=kept(request.scope),
            body=body,
        )
        if not await asyncio.to_thread(self._queue.add, job, self._config.max_open):
            message = f"{self._config.max_open} batches are not finished yet; wait, or cancel some"
            raise WireError(message, code="too_many_batches", status=429)
        self._wake(job.id)
        return JSONResponse(shown(job, (0, 0)))

    async def list(self, request: Request) -> Response:
        """List a tenant's batches, newest first."""
        known_only(request.query_params, ("limit", "after"))
        limit, after = limit_of(request.query_params), request.query_params.get("after", "")
        tenant = tenant_of(request.scope)
        found = await asyncio.to_thread(self._queue.jobs_of, tenant, "batch", after, limit + 1)
        return JSONResponse(page([await self._shown(job) for job in found], limit))

    async def show(self, request: Request) -> Response:
        """Show a batch."""
        return JSONResponse(await self._shown(await self._asked(request)))

    async def cancel(self, request: Request) -> Response:
        """End a batch; what is answered already stays."""
        job = await self._asked(request)
        changed = await asyncio.to_thread(self._queue.change, job.id, _cancelling)
        assert changed is not None
        if changed.status not in ("cancelling", "cancelled"):
            message = f"the batch is {changed.status}: nothing of it can be cancelled"
            raise WireError(message, code="batch_not_cancellable", status=409)
        self._wake(job.id)
        return JSONResponse(await self._shown(changed))

    async def _asked(self, request: Request) -> Job:
        id = request.path_params["id"]
        job = await asyncio.to_thread(self._queue.get, id, tenant_of(request.scope))
        if job is None:
            raise WireError(f"there is no batch {id!r}", code="batch_not_found", status=404)
        return job

    async def _shown(self, job: Job) -> dict[str, Any]:
        if "counts" in job.body:
            return shown(job, job.body["counts"])
        good, bad, *_ = await asyncio.to_thread(self._queue.counts, job.id)
        return shown(job, (good, bad))


def _cancelling(job: Job) -> Mapping[str, Any] | None:
    if job.status not in ("validating", "in_progress"):
        return None
    return {"status": "cancelling", "body": job.body | {"cancelling_at": int(time.time())}}


def shown(job: Job, counts: tuple[int, int]) -> dict[str, Any]:
    """Return a batch in OpenAI's form."""
    body = job.body
    return {
        "id": job.id,
        "object": "batch",
        "endpoint": job.endpoint,
        "model": body.get("model") or None,
        "errors": {"object": "list", "data": body["errors"]} if body.get("errors") else None,
        "input_file_id": job.input,
        "completion_window": body["completion_window"],
        "status": job.status,
        "output_file_id": body.get("output_file_id"),
        "error_file_id": body.get("error_file_id"),
        "created_at": int(job.created),
        "expires_at": int(job.expires),
        **{f"{name}_at": body.get(f"{name}_at") for name in TIMES},
        "request_counts": {"total": body["total"], "completed": counts[0], "failed": counts[1]},
        "usage": body.get("usage"),
        "metadata": body["metadata"],
    }


def usage(prompt: int, written: int) -> dict[str, Any]:
    """Return the tokens of a whole batch in OpenAI's form."""
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + written,
    }
