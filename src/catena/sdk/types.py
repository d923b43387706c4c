"""What calls return. A server may tell more than is named here; that is in `model_extra`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Told(BaseModel):
    """What a server told."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class Share(Told):
    """A value and its probability."""

    value: Any
    probability: float
    label: str | None = None
    """Of a level."""


class Decision(Told):
    """The answer to one question."""

    type: str
    name: str | None = None
    probability: float | None = None
    """Of a predicate: how likely it is true."""
    choice: Any = None
    score: float | None = None
    confidence: float | None = None
    probabilities: tuple[Share, ...] = ()


class Label(Told):
    """The label of one text."""

    label: str
    probabilities: dict[str, float] = Field(default_factory=dict)


class Tokens(Told):
    """A text as the model reads it."""

    tokens: tuple[int, ...]
    count: int
    max_model_len: int | None = None
    token_strs: tuple[str, ...] | None = None


class Feedback(Told):
    """What somebody said of an answer."""

    id: str
    request_id: str
    model: str = ""
    rating: str
    consent: bool
    corrected: bool = False
    created: int = 0
    revision: int = 1


class Model(Told):
    """A model of a server."""

    id: str
    owned_by: str = ""
    created: int = 0
    digest: str | None = None
    """Of its weights, where the server knows it: `lineage` takes it."""


class Lineage(Told):
    """What something was made from, and what was made of it."""

    root: str = ""
    nodes: tuple[dict[str, Any], ...] = ()
    edges: tuple[dict[str, Any], ...] = ()

    def names(self, kind: str = "") -> list[str]:
        """Return the labels of its nodes, of one kind (dataset, model, report, run) where one is given."""
        return [str(node["label"]) for node in self.nodes if not kind or node["kind"] == kind]


class Counts(Told):
    """Requests of a batch."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class Batch(Told):
    """A batch, as OpenAI gives it."""

    id: str
    status: str
    endpoint: str
    input_file_id: str
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int = 0
    expires_at: int | None = None
    request_counts: Counts = Counts()
    errors: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more will happen."""
        return self.status in ("completed", "failed", "expired", "cancelled")


class Release(Told):
    """A candidate beside a model."""

    model: str
    candidate: str = ""
    mode: str = ""
    phase: str = ""
    percent: float = 0.0


class ReleaseAct(Told):
    """A line of a gateway's change log."""

    time: float
    """Seconds since 1970."""
    act: str
    model: str
    by: str = ""
    reason: str = ""


class ChatPiece(Told):
    """A piece of an answer that is streamed."""

    text: str = ""
    finish: str = ""
    """Why the answer ended, in its last piece: stop, length, content_filter."""
    id: str = ""
    """Of the answer: `feedback` takes it."""
    request_id: str = ""
    prompt_tokens: int = 0
    answer_tokens: int = 0
    """Both where the server tells them, in the last piece."""

    @classmethod
    def of(cls, event: Any) -> ChatPiece:
        """Read an event of OpenAI's stream."""
        choice = (event.get("choices") or [{}])[0]
        usage = event.get("usage") or {}
        return cls(
            text=(choice.get("delta") or {}).get("content") or "",
            finish=choice.get("finish_reason") or "",
            id=event.get("id") or "",
            prompt_tokens=usage.get("prompt_tokens") or 0,
            answer_tokens=usage.get("completion_tokens") or 0,
        )


class Key(Told):
    """A key, without its secret."""

    id: str
    name: str
    subject: str
    role: str
    state: str = ""
    models: tuple[str, ...] = ("*",)
    expires: datetime | None = None


class NewKey(Key):
    """A key that was just made; its secret is shown only now."""

    key: str = Field(repr=False)


class AuditEntry(Told):
    """An entry of the audit."""

    seq: int
    time: str
    kind: str


class Health(Told):
    """Whether a server works."""

    status: str
    models: dict[str, Any] = Field(default_factory=dict)


class Ready(Told):
    """Whether every model of a gateway has a replica that answers."""

    ready: bool
    replicas: dict[str, Any] = Field(default_factory=dict)
