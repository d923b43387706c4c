"""The queue's tables, which stand apart from the index: they may lie in a database of their own.

files     one row for each file of a tenant; its bytes are in the file store, by content
jobs      one row for each batch and each background response; `body` is what people see of it, as JSON
results   one row for each request that is answered: the key (job, line) is what makes a result come out once
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import BigInteger, Boolean, Column, Float, Index, Integer, MetaData, String, Table, Text

Kind = Literal["batch", "response"]
ACTIVE = ("queued", "validating", "in_progress", "finalizing", "cancelling")
"""States in which a gateway has something to do."""

metadata = MetaData()
files = Table(
    "job_files",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("tenant", String(200), nullable=False),
    Column("name", String(255), nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False, index=True),
    Column("created", Float(53), nullable=False),
    Column("expires", Float(53), nullable=True, index=True),
    Index("job_files_tenant_created", "tenant", "created"),
)
jobs = Table(
    "jobs",
    metadata,
    Column("id", String(48), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("tenant", String(200), nullable=False),
    Column("status", String(16), nullable=False, index=True),
    Column("created", Float(53), nullable=False),
    Column("expires", Float(53), nullable=False),
    Column("ended", Float(53), nullable=True),
    Column("endpoint", String(64), nullable=False),
    Column("input", Text, nullable=False),  # a batch: id of its file; a response: the request itself
    Column("who", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("owner", String(80), nullable=False, default=""),
    Column("lease", Float(53), nullable=False, default=0.0),
    Index("jobs_tenant_created", "tenant", "created"),
)
results = Table(
    "job_results",
    metadata,
    Column("job", String(48), primary_key=True),
    Column("line", Integer, primary_key=True),
    Column("good", Boolean, nullable=False),
    Column("prompt", BigInteger, nullable=False),
    Column("written", BigInteger, nullable=False),
    Column("body", Text, nullable=False),
)


@dataclass(frozen=True, slots=True)
class FileRow:
    """A file."""

    id: str
    tenant: str
    name: str
    purpose: str
    bytes: int
    sha256: str
    created: float
    expires: float | None = None

    def shown(self) -> dict[str, Any]:
        """Return it in OpenAI's form."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": int(self.created),
            "expires_at": None if self.expires is None else int(self.expires),
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


@dataclass(frozen=True, slots=True)
class Job:
    """A batch or a background response."""

    id: str
    kind: Kind
    tenant: str
    status: str
    created: float
    expires: float
    endpoint: str
    input: str
    who: dict[str, Any]
    body: dict[str, Any] = field(default_factory=dict)
    owner: str = ""

    @property
    def active(self) -> bool:
        """Whether something is still to be done."""
        return self.status in ACTIVE


@dataclass(frozen=True, slots=True)
class Result:
    """The answer to one line."""

    line: int
    good: bool
    body: str
    prompt: int = 0
    written: int = 0
