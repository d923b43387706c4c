"""Each call of the SDK as a value: what is sent, and how the answer is read. Both clients send the same. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote

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


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A request, and how its answer is read."""

    read: Callable[[Any], T]
    method: str
    path: str
    body: Any = None
    query: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Any] | None = None
    good: tuple[int, ...] = ()
    """Further statuses that are answers."""
    raw: bool = False
    """Whether the answer is bytes and not JSON."""


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value not in (None, "")}


def _list(kind: Callable[[Any], T], key: str = "data") -> Callable[[Any], list[T]]:
    return lambda body: [kind(one) for one in body[key]]


def decisions(model: str, input: Any, questions: Sequence[Mapping[str, Any]]) -> Call[list[Decision]]:
    body = {"model": model, "input": input, "questions": list(questions)}
    return Call(_list(Decision.model_validate, "answers"), "POST", "/v1/decisions", body)


def classify(model: str, texts: Sequence[str]) -> Call[list[Label]]:
    def read(one: Any) -> Label:
        return Label(label=one["label"], probabilities=dict(zip(one["labels"], one["probs"], strict=True)))

    return Call(_list(read), "POST", "/v1/classify", {"model": model, "input": list(texts)})


def tokenize(model: str, text: str | Sequence[Mapping[str, Any]], *, pieces: bool) -> Call[Tokens]:
    asked = {"prompt": text} if isinstance(text, str) else {"messages": list(text)}
    body = {"model": model, **asked, "return_token_strs": pieces}
    return Call(Tokens.model_validate, "POST", "/tokenize", body)


def detokenize(model: str, tokens: Sequence[int]) -> Call[str]:
    return Call(lambda body: str(body["prompt"]), "POST", "/detokenize", {"model": model, "tokens": list(tokens)})


def feedback(
    answer: Mapping[str, str | None], rating: str, consent: bool, words: Mapping[str, str | None]
) -> Call[Feedback]:
    body = {**_given(**answer), "rating": rating, "consent": consent, **_given(**words)}
    return Call(Feedback.model_validate, "POST", "/v1/feedback", body)


def feedbacks(after: int, limit: int, model: str, rating: str) -> Call[list[Feedback]]:
    query = _given(after=after, limit=limit, model=model, rating=rating)
    return Call(_list(Feedback.model_validate), "GET", "/v1/feedback", query=query)


def models() -> Call[list[Model]]:
    return Call(_list(Model.model_validate), "GET", "/v1/models")


def model(name: str) -> Call[Model]:
    return Call(Model.model_validate, "GET", f"/v1/models/{quote(name)}")


def lineage(ref: str) -> Call[Lineage]:
    return Call(Lineage.model_validate, "GET", f"/admin/lineage/{quote(ref)}")


def upload(name: str, data: bytes) -> Call[str]:
    files = {"file": (name, data), "purpose": (None, "batch")}
    return Call(lambda body: str(body["id"]), "POST", "/v1/files", files=files)


def content(file: str) -> Call[bytes]:
    return Call(lambda data: bytes(data), "GET", f"/v1/files/{quote(file, safe='')}/content", raw=True)


def submit(file: str, endpoint: str, window: str, metadata: Mapping[str, str] | None) -> Call[Batch]:
    body = {"input_file_id": file, "endpoint": endpoint, "completion_window": window}
    return Call(Batch.model_validate, "POST", "/v1/batches", {**body, **_given(metadata=metadata and dict(metadata))})


def jobs(limit: int, after: str) -> Call[list[Batch]]:
    return Call(_list(Batch.model_validate), "GET", "/v1/batches", query=_given(limit=limit, after=after))


def job(id: str) -> Call[Batch]:
    return Call(Batch.model_validate, "GET", f"/v1/batches/{quote(id, safe='')}")


def cancel(id: str) -> Call[Batch]:
    return Call(Batch.model_validate, "POST", f"/v1/batches/{quote(id, safe='')}/cancel", {})


def releases() -> Call[list[Release]]:
    return Call(_list(Release.model_validate, "releases"), "GET", "/admin/releases")


def release(model: str) -> Call[Release]:
    return Call(Release.model_validate, "GET", f"/admin/releases/{quote(model)}")


def start_release(model: str, candidate: str, settings: Mapping[str, Any]) -> Call[Release]:
    body = {"model": model, "candidate": candidate, "release": dict(settings)}
    return Call(lambda told: Release.model_validate({"model": model, **told}), "POST", "/admin/releases", body)


def end_release(model: str, act: str, reason: str, release: str) -> Call[None]:
    body = _given(act=act, reason=reason, release=release)
    return Call(lambda told: None, "POST", f"/admin/releases/{quote(model)}", body)


def changes() -> Call[list[ReleaseAct]]:
    return Call(_list(ReleaseAct.model_validate, "changes"), "GET", "/admin/releases")


def metrics() -> Call[str]:
    return Call(lambda data: bytes(data).decode(), "GET", "/metrics", raw=True)


def chat(model: str, messages: Sequence[Mapping[str, Any]], params: Mapping[str, Any]) -> Call[ChatPiece]:
    body = {"model": model, "messages": list(messages), **params, "stream": True}
    return Call(ChatPiece.of, "POST", "/v1/chat/completions", body)


def keys() -> Call[list[Key]]:
    return Call(_list(Key.model_validate), "GET", "/admin/keys")


def create_key(name: str, role: str, rights: Mapping[str, Any]) -> Call[NewKey]:
    return Call(NewKey.model_validate, "POST", "/admin/keys", {"name": name, "role": role, **rights})


def revoke_key(ref: str) -> Call[Key]:
    return Call(Key.model_validate, "POST", f"/admin/keys/{quote(ref, safe='')}", {"act": "revoke"})


def rotate_key(ref: str, grace_s: float) -> Call[NewKey]:
    body = {"act": "rotate", "grace_s": grace_s}
    return Call(NewKey.model_validate, "POST", f"/admin/keys/{quote(ref, safe='')}", body)


def audit(query: Mapping[str, Any]) -> Call[list[AuditEntry]]:
    return Call(_list(AuditEntry.model_validate), "GET", "/admin/audit", query=_given(**query))


def health() -> Call[Health]:
    return Call(Health.model_validate, "GET", "/health", good=(503,))


def ready() -> Call[Ready]:
    return Call(Ready.model_validate, "GET", "/ready", good=(503,))
