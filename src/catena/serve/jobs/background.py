"""Responses in the background: `background: true` in `POST /v1/responses`, then `/v1/responses/{id}`.

queued -> in_progress -> completed | incomplete | failed
   '-----------'-------> cancelled
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from catena.serve.gateway.ask import Ask
from catena.serve.inner import Answered
from catena.serve.jobs.config import JobsConfig
from catena.serve.jobs.forms import known_only
from catena.serve.jobs.queue import Queue
from catena.serve.jobs.tables import Job
from catena.serve.jobs.who import kept, require_jobs, tenant_of
from catena.serve.wire import WireError

PATH = "/v1/responses"
ECHOED: Mapping[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "user": None,
    "temperature": None,
    "top_p": None,
    "top_logprobs": 0,
    "parallel_tool_calls": True,
    "tools": [],
    "tool_choice": "auto",
    "text": {"format": {"type": "text"}},
}
FIXED: Mapping[str, Any] = {
    "truncation": "disabled",
    "previous_response_id": None,
    "store": True,
    "background": True,
    "service_tier": "default",
}


class Background:
    """Background responses of tenants."""

    def __init__(self, queue: Queue, config: JobsConfig, wake: Callable[[str], None]) -> None:
        self._queue, self._config, self._wake = queue, config, wake

    async def accept(self, ask: Ask, scope: Scope) -> bytes:
        """Take a request in and return its first answer; the request was moderated and its key checked."""
        require_jobs(scope)
        if ask.stream:
            message = "stream is not supported by this server for background responses"
            raise WireError(message, param="stream", code="unsupported_parameter")
        if ask.fields.get("store") is False:
            message = "a background response is stored: store must not be false"
            raise WireError(message, param="store", code="unsupported_parameter")
        moment = time.time()
        left = {name: value for name, value in ask.fields.items() if name not in ("background", "store", "stream")}
        job = Job(
            id=f"resp_{secrets.token_hex(16)}",
            kind="response",
            tenant=tenant_of(scope),
            status="queued",
            created=moment,
            expires=moment + self._config.response_window_s,
            endpoint=PATH,
            input=json.dumps(left, ensure_ascii=False),
            who=kept(scope),
            body=_empty(ask.fields),
        )
        if not await asyncio.to_thread(self._queue.add, job, self._config.max_open):
            message = f"{self._config.max_open} background responses are not finished yet; wait, or cancel some"
            raise WireError(message, code="too_many_responses", status=429)
        self._wake(job.id)
        return orjson.dumps(shown(job))

    async def show(self, request: Request) -> Response:
        """Show a response."""
        known_only(request.query_params, ("include", "include[]", "stream"))
        if request.query_params.get("stream", "false").lower() not in ("false", "0"):
            message = "stream is not supported by this server for background responses"
            raise WireError(message, param="stream", code="unsupported_parameter")
        return JSONResponse(shown(await self._asked(request)))

    async def cancel(self, request: Request) -> Response:
        """End a response that is not answered yet; one that has ended stays as it is."""
        job = await self._asked(request)
        changed = await asyncio.to_thread(self._queue.change, job.id, _cancelled)
        assert changed is not None
        self._wake(job.id)
        return JSONResponse(shown(changed))

    async def delete(self, request: Request) -> Response:
        """Forget a response."""
        job = await self._asked(request)
        await asyncio.to_thread(self._queue.remove, job.id)
        self._wake(job.id)
        return JSONResponse({"id": job.id, "object": "response", "deleted": True})

    async def _asked(self, request: Request) -> Job:
        id = request.path_params["id"]
        job = await asyncio.to_thread(self._queue.get, id, tenant_of(request.scope), "response")
        if job is None:
            raise WireError(f"there is no response {id!r}", code="response_not_found", status=404)
        return job


def _cancelled(job: Job) -> Mapping[str, Any] | None:
    return {"status": "cancelled"} if job.active else None


def _empty(fields: Mapping[str, Any]) -> dict[str, Any]:
    told = {name: fields[name] if fields.get(name) is not None else usual for name, usual in ECHOED.items()}
    return {"model": fields["model"], **told}


def shown(job: Job) -> dict[str, Any]:
    """Return a response in OpenAI's form."""
    found = {"error": None, "incomplete_details": None, "output": [], "usage": None} | job.body
    head = {"id": job.id, "object": "response", "created_at": int(job.created), "status": job.status}
    return {**found, **FIXED, **head}


def body_of(job: Job, answer: Answered) -> tuple[str, dict[str, Any]]:
    """Return the state and the body that an answer gives a response."""
    try:
        told = orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        told = {}
    if 200 <= answer.status < 300 and isinstance(told, dict):
        return str(told.get("status") or "completed"), job.body | told
    error = told.get("error") if isinstance(told, dict) else None
    message = str(error.get("message")) if isinstance(error, dict) else f"the model answered {answer.status}"
    code = error.get("code") if isinstance(error, dict) else None
    return "failed", job.body | {"error": {"code": code or "server_error", "message": message}}
