"""The client whose calls are awaited; it has the methods of the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

from catena.core.registry import require
from catena.sdk import calls
from catena.sdk.calls import Call
from catena.sdk.client import LOOK_S, MOST_LOOK_S, file_of, lines_of
from catena.sdk.transport import (
    DONE,
    again,
    base_of,
    cut,
    headers_of,
    lines_coming,
    may_repeat,
    pause,
    piece_of,
    read,
    sent,
    unreachable,
)
from catena.sdk.types import (
    AuditEntry,
    Batch,
    ChatPiece,
    Decision,
    Feedback,
    Health,
    Key,
    Label,
    Lineage,
    Model,
    NewKey,
    Ready,
    Release,
    ReleaseAct,
    Tokens,
)

T = TypeVar("T")


class AsyncCatena:
    """The same, without waiting in a thread."""

    def __init__(self, url: str, *, key: str = "", timeout_s: float = 60.0, retries: int = 2) -> None:
        self._http, self.url, self._retries = require("httpx2", "sdk"), base_of(url), retries
        self._client = self._http.AsyncClient(
            base_url=self.url, headers=headers_of(key), timeout=timeout_s, trust_env="127.0.0.1" not in url
        )

    async def __aenter__(self) -> AsyncCatena:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def send(self, call: Call[T]) -> T:
        """Send a call; raises `ApiError` for a refusal and `Unreachable` where nobody answers."""
        for attempt in range(self._retries + 1):
            left = self._retries - attempt
            try:
                answer = await self._client.request(call.method, call.path, **sent(call))
            except self._http.TransportError as error:
                if not left or not may_repeat(call, arrived=not isinstance(error, self._http.ConnectError)):
                    raise unreachable(self.url, error) from error
                await asyncio.sleep(pause(attempt))
                continue
            if not again(answer.status_code, call, answer.headers, left):
                return read(call, answer.status_code, answer.headers, answer.content)
            await asyncio.sleep(pause(attempt, answer.headers))
        raise AssertionError("the last attempt returns or raises")

    async def submit_job(
        self,
        requests: Path | bytes | Sequence[Mapping[str, Any]],
        endpoint: str = "/v1/chat/completions",
        *,
        window: str = "24h",
        metadata: Mapping[str, str] | None = None,
    ) -> Batch:
        """Upload requests (a JSONL file, its bytes, or the lines) and make a batch of them."""
        file = await self.send(calls.upload(*file_of(requests)))
        return await self.send(calls.submit(file, endpoint, window, metadata))

    async def wait_job(self, id: str, *, timeout_s: float | None = None) -> Batch:
        """Return a batch when nothing more will happen; raises `TimeoutError`."""
        async with asyncio.timeout(timeout_s):
            look = LOOK_S
            while not (batch := await self.job(id)).over:
                await asyncio.sleep(look)
                look = min(look * 1.5, MOST_LOOK_S)
            return batch

    async def job_results(self, batch: Batch) -> list[dict[str, Any]]:
        """Return the lines of both files of a batch: answers, then errors."""
        found: list[dict[str, Any]] = []
        for file in filter(None, (batch.output_file_id, batch.error_file_id)):
            found += lines_of(await self.send(calls.content(file)))
        return found

    async def decisions(self, model: str, input: Any, questions: Sequence[Mapping[str, Any]]) -> list[Decision]:
        """Answer typed questions about an input: `predicate`, `choice`, `score`."""
        return await self.send(calls.decisions(model, input, questions))

    async def classify(self, model: str, texts: Sequence[str]) -> list[Label]:
        """Label texts by a classifier."""
        return await self.send(calls.classify(model, texts))

    async def tokenize(self, model: str, text: str | Sequence[Mapping[str, Any]], *, pieces: bool = False) -> Tokens:
        """Return the tokens of a text or of messages; with `pieces` also what each of them says."""
        return await self.send(calls.tokenize(model, text, pieces=pieces))

    async def detokenize(self, model: str, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        return await self.send(calls.detokenize(model, tokens))

    async def feedback(
        self,
        rating: Literal["up", "down"],
        *,
        consent: bool,
        request_id: str | None = None,
        response_id: str | None = None,
        correction: str | None = None,
        comment: str | None = None,
    ) -> Feedback:
        """Rate an answer by its request's or its own id; with `consent` it may be learnt from."""
        return await self.send(
            calls.feedback(
                {"request_id": request_id, "response_id": response_id},
                rating,
                consent,
                {"correction": correction, "comment": comment},
            )
        )

    async def feedbacks(self, *, after: int = 0, limit: int = 100, model: str = "", rating: str = "") -> list[Feedback]:
        """List what was said, in the order of the last change."""
        return await self.send(calls.feedbacks(after, limit, model, rating))

    async def chat(self, model: str, messages: Sequence[Mapping[str, Any]], **params: Any) -> AsyncIterator[ChatPiece]:
        """Yield an answer piece by piece; to leave the loop (and close it) stops the model.

        `params` as in OpenAI's API. Raises `ApiError` for a refusal (it is not tried again) and `RemoteError` for a
        stream that breaks off.
        """
        call, begun = calls.chat(model, messages, params), False
        try:
            async with self._client.stream(call.method, call.path, **sent(call)) as answer:
                if answer.status_code >= 300:
                    read(call, answer.status_code, answer.headers, await answer.aread())
                begun, request_id = True, answer.headers.get("x-request-id", "")
                async for line in lines_coming(answer.aiter_bytes()):
                    if line[5:].strip() == DONE:
                        return
                    if (piece := piece_of(call, line)) is not None:
                        yield piece.model_copy(update={"request_id": request_id})
        except self._http.TransportError as error:
            raise (cut(error) if begun else unreachable(self.url, error)) from error
        raise cut()

    async def models(self) -> list[Model]:
        """List the models that this key may use."""
        return await self.send(calls.models())

    async def model(self, name: str) -> Model:
        """Return a model, with the digest of its weights where the server knows it."""
        return await self.send(calls.model(name))

    async def lineage(self, ref: str) -> Lineage:
        """Return what a stored thing (a digest, a name) was made from, and what was made of it."""
        return await self.send(calls.lineage(ref))

    async def jobs(self, *, limit: int = 20, after: str = "") -> list[Batch]:
        """List batches, newest first."""
        return await self.send(calls.jobs(limit, after))

    async def job(self, id: str) -> Batch:
        """Return how a batch stands."""
        return await self.send(calls.job(id))

    async def cancel_job(self, id: str) -> Batch:
        """End a batch; what is answered already stays."""
        return await self.send(calls.cancel(id))

    async def releases(self) -> list[Release]:
        """List releases that are under way."""
        return await self.send(calls.releases())

    async def release(self, model: str) -> Release:
        """Return how a release stands."""
        return await self.send(calls.release(model))

    async def start_release(self, model: str, candidate: str, **settings: Any) -> Release:
        """Give a candidate its first users; settings are those of `catena release start --set`."""
        return await self.send(calls.start_release(model, candidate, settings))

    async def promote(self, model: str, *, reason: str = "", release: str = "") -> None:
        """Give everybody the candidate now; where `release` (its id) is over, `ApiError` 409."""
        await self.send(calls.end_release(model, "promote", reason, release))

    async def rollback(self, model: str, *, reason: str = "", release: str = "") -> None:
        """Give nobody the candidate any more; where `release` (its id) is over, `ApiError` 409."""
        await self.send(calls.end_release(model, "rollback", reason, release))

    async def release_acts(self) -> list[ReleaseAct]:
        """List the last acts of releases, oldest first: who, why, on what evidence."""
        return await self.send(calls.changes())

    async def metrics(self) -> str:
        """Return counts and gauges of a gateway and its replicas, as Prometheus text."""
        return await self.send(calls.metrics())

    async def keys(self) -> list[Key]:
        """List keys, without their secrets."""
        return await self.send(calls.keys())

    async def create_key(
        self, name: str, role: Literal["admin", "developer", "user"] = "user", **rights: Any
    ) -> NewKey:
        """Make a key; `rights` are subject, models, actions, expires_s."""
        return await self.send(calls.create_key(name, role, rights))

    async def revoke_key(self, ref: str) -> Key:
        """Let a key open nothing any more."""
        return await self.send(calls.revoke_key(ref))

    async def rotate_key(self, ref: str, *, grace_s: float = 0.0) -> NewKey:
        """Make a key in an old one's place, which goes on for `grace_s` seconds."""
        return await self.send(calls.rotate_key(ref, grace_s))

    async def audit(self, **query: Any) -> list[AuditEntry]:
        """Search the audit: subject, text, kind, model, id, since, until (ISO 8601), limit."""
        return await self.send(calls.audit(query))

    async def health(self) -> Health:
        """Return whether the server works."""
        return await self.send(calls.health())

    async def ready(self) -> Ready:
        """Return whether every model of a gateway has a replica that answers."""
        return await self.send(calls.ready())
