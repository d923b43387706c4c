"""The client whose calls are waited for in the thread that makes them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

from catena.core.registry import require
from catena.sdk import calls
from catena.sdk.calls import Call
from catena.sdk.transport import (
    DONE,
    again,
    base_of,
    cut,
    headers_of,
    lines_in,
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
LOOK_S = 1.0
MOST_LOOK_S = 15.0


class Catena:
    """A server, asked and waited for. Calls are tried again on 429 and 503 as the server says, `retries` times."""

    def __init__(self, url: str, *, key: str = "", timeout_s: float = 60.0, retries: int = 2) -> None:
        self._http, self.url, self._retries = require("httpx2", "sdk"), base_of(url), retries
        self._client = self._http.Client(
            base_url=self.url, headers=headers_of(key), timeout=timeout_s, trust_env="127.0.0.1" not in url
        )

    def __enter__(self) -> Catena:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def send(self, call: Call[T]) -> T:
        """Send a call; raises `ApiError` for a refusal and `Unreachable` where nobody answers."""
        for attempt in range(self._retries + 1):
            left = self._retries - attempt
            try:
                answer = self._client.request(call.method, call.path, **sent(call))
            except self._http.TransportError as error:
                if not left or not may_repeat(call, arrived=not isinstance(error, self._http.ConnectError)):
                    raise unreachable(self.url, error) from error
                time.sleep(pause(attempt))
                continue
            if not again(answer.status_code, call, answer.headers, left):
                return read(call, answer.status_code, answer.headers, answer.content)
            time.sleep(pause(attempt, answer.headers))
        raise AssertionError("the last attempt returns or raises")

    def submit_job(
        self,
        requests: Path | bytes | Sequence[Mapping[str, Any]],
        endpoint: str = "/v1/chat/completions",
        *,
        window: str = "24h",
        metadata: Mapping[str, str] | None = None,
    ) -> Batch:
        """Upload requests (a JSONL file, its bytes, or the lines) and make a batch of them."""
        file = self.send(calls.upload(*file_of(requests)))
        return self.send(calls.submit(file, endpoint, window, metadata))

    def wait_job(self, id: str, *, timeout_s: float | None = None) -> Batch:
        """Return a batch when nothing more will happen; raises `TimeoutError`."""
        until, look = None if timeout_s is None else time.monotonic() + timeout_s, LOOK_S
        while not (batch := self.job(id)).over:
            if until is not None and time.monotonic() > until:
                raise TimeoutError(f"{id} is {batch.status} after {timeout_s:g} s")
            time.sleep(look)
            look = min(look * 1.5, MOST_LOOK_S)
        return batch

    def job_results(self, batch: Batch) -> Iterator[dict[str, Any]]:
        """Yield the lines of both files of a batch: answers, then errors."""
        for file in filter(None, (batch.output_file_id, batch.error_file_id)):
            yield from lines_of(self.send(calls.content(file)))

    def decisions(self, model: str, input: Any, questions: Sequence[Mapping[str, Any]]) -> list[Decision]:
        """Answer typed questions about an input: `predicate`, `choice`, `score`."""
        return self.send(calls.decisions(model, input, questions))

    def classify(self, model: str, texts: Sequence[str]) -> list[Label]:
        """Label texts by a classifier."""
        return self.send(calls.classify(model, texts))

    def tokenize(self, model: str, text: str | Sequence[Mapping[str, Any]], *, pieces: bool = False) -> Tokens:
        """Return the tokens of a text or of messages; with `pieces` also what each of them says."""
        return self.send(calls.tokenize(model, text, pieces=pieces))

    def detokenize(self, model: str, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        return self.send(calls.detokenize(model, tokens))

    def feedback(
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
        return self.send(
            calls.feedback(
                {"request_id": request_id, "response_id": response_id},
                rating,
                consent,
                {"correction": correction, "comment": comment},
            )
        )

    def feedbacks(self, *, after: int = 0, limit: int = 100, model: str = "", rating: str = "") -> list[Feedback]:
        """List what was said, in the order of the last change."""
        return self.send(calls.feedbacks(after, limit, model, rating))

    def chat(self, model: str, messages: Sequence[Mapping[str, Any]], **params: Any) -> Iterator[ChatPiece]:
        """Yield an answer piece by piece; to leave the loop (and close it) stops the model.

        `params` as in OpenAI's API. Raises `ApiError` for a refusal (it is not tried again) and `RemoteError` for a
        stream that breaks off.
        """
        call, begun = calls.chat(model, messages, params), False
        try:
            with self._client.stream(call.method, call.path, **sent(call)) as answer:
                if answer.status_code >= 300:
                    read(call, answer.status_code, answer.headers, answer.read())
                begun, request_id = True, answer.headers.get("x-request-id", "")
                for line in lines_in(answer.iter_bytes()):
                    if line[5:].strip() == DONE:
                        return
                    if (piece := piece_of(call, line)) is not None:
                        yield piece.model_copy(update={"request_id": request_id})
        except self._http.TransportError as error:
            raise (cut(error) if begun else unreachable(self.url, error)) from error
        raise cut()

    def models(self) -> list[Model]:
        """List the models that this key may use."""
        return self.send(calls.models())

    def model(self, name: str) -> Model:
        """Return a model, with the digest of its weights where the server knows it."""
        return self.send(calls.model(name))

    def lineage(self, ref: str) -> Lineage:
        """Return what a stored thing (a digest, a name) was made from, and what was made of it."""
        return self.send(calls.lineage(ref))

    def jobs(self, *, limit: int = 20, after: str = "") -> list[Batch]:
        """List batches, newest first."""
        return self.send(calls.jobs(limit, after))

    def job(self, id: str) -> Batch:
        """Return how a batch stands."""
        return self.send(calls.job(id))

    def cancel_job(self, id: str) -> Batch:
        """End a batch; what is answered already stays."""
        return self.send(calls.cancel(id))

    def releases(self) -> list[Release]:
        """List releases that are under way."""
        return self.send(calls.releases())

    def release(self, model: str) -> Release:
        """Return how a release stands."""
        return self.send(calls.release(model))

    def start_release(self, model: str, candidate: str, **settings: Any) -> Release:
        """Give a candidate its first users; settings are those of `catena release start --set`."""
        return self.send(calls.start_release(model, candidate, settings))

    def promote(self, model: str, *, reason: str = "", release: str = "") -> None:
        """Give everybody the candidate now; where `release` (its id) is over, `ApiError` 409."""
        self.send(calls.end_release(model, "promote", reason, release))

    def rollback(self, model: str, *, reason: str = "", release: str = "") -> None:
        """Give nobody the candidate any more; where `release` (its id) is over, `ApiError` 409."""
        self.send(calls.end_release(model, "rollback", reason, release))

    def release_acts(self) -> list[ReleaseAct]:
        """List the last acts of releases, oldest first: who, why, on what evidence."""
        return self.send(calls.changes())

    def metrics(self) -> str:
        """Return counts and gauges of a gateway and its replicas, as Prometheus text."""
        return self.send(calls.metrics())

    def keys(self) -> list[Key]:
        """List keys, without their secrets."""
        return self.send(calls.keys())

    def create_key(self, name: str, role: Literal["admin", "developer", "user"] = "user", **rights: Any) -> NewKey:
        """Make a key; `rights` are subject, models, actions, expires_s."""
        return self.send(calls.create_key(name, role, rights))

    def revoke_key(self, ref: str) -> Key:
        """Let a key open nothing any more."""
        return self.send(calls.revoke_key(ref))

    def rotate_key(self, ref: str, *, grace_s: float = 0.0) -> NewKey:
        """Make a key in an old one's place, which goes on for `grace_s` seconds."""
        return self.send(calls.rotate_key(ref, grace_s))

    def audit(self, **query: Any) -> list[AuditEntry]:
        """Search the audit: subject, text, kind, model, id, since, until (ISO 8601), limit."""
        return self.send(calls.audit(query))

    def health(self) -> Health:
        """Return whether the server works."""
        return self.send(calls.health())

    def ready(self) -> Ready:
        """Return whether every model of a gateway has a replica that answers."""
        return self.send(calls.ready())


def file_of(requests: Path | bytes | Sequence[Mapping[str, Any]]) -> tuple[str, bytes]:
    if isinstance(requests, Path):
        return requests.name, requests.read_bytes()
    if isinstance(requests, bytes):
        return "requests.jsonl", requests
    return "requests.jsonl", b"".join(json.dumps(one, ensure_ascii=False).encode() + b"\n" for one in requests)


def lines_of(data: bytes) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for line in data.splitlines() if line)
