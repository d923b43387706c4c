"""`jobs` of a deploy file: where the queue is, and the bounds of work that nobody waits for."""

from __future__ import annotations

from pydantic import Field

from catena.core.config import Config

DAY_S = 86400.0


class JobsConfig(Config):
    """Batches, files and background responses."""

    on: bool = True
    """Offer them at all."""
    store: str = ""
    """Database URL of the queue; empty: the workspace's PostgreSQL, or else SQLite in the state folder."""
    files: str = ""
    """Where bytes of files are (a folder, or an fsspec URL); empty: in the state folder. Gateways that share a queue
    must share it."""
    concurrency: int = Field(default=4, ge=1)
    """Most requests of jobs at once, for all of them together."""
    batches: int = Field(default=2, ge=1)
    """Most batches at once; those of different tenants before a second one of the same."""
    patience_s: float = Field(default=30.0, ge=0)
    """A request of a job lets live ones go first for at most so long, in seconds."""
    attempts: int = Field(default=3, ge=1)
    """So often a request is tried that servers fail; one that is told to come back (429, 503) until its job expires."""
    lease_s: float = Field(default=15.0, gt=0)
    """A job whose gateway was silent for so long is given to another, in seconds."""
    poll_s: float = Field(default=2.0, gt=0)
    """Time between two looks for jobs that other gateways took in or lost, in seconds."""
    response_window_s: float = Field(default=DAY_S, gt=0)
    """A background response must be answered within this time, in seconds."""
    keep_s: float = Field(default=30 * DAY_S, gt=0)
    """So long finished jobs and the files that they made are kept, in seconds."""
    max_file_bytes: int = Field(default=100 << 20, ge=1)
    """Largest file."""
    max_tenant_bytes: int = Field(default=2 << 30, ge=1)
    """Most bytes of files that one tenant has."""
    max_requests: int = Field(default=50_000, ge=1)
    """Most requests in one batch."""
    max_open: int = Field(default=100, ge=1)
    """Most batches, and as many responses, of one tenant that are not finished."""
    upload_timeout_s: float = Field(default=600.0, gt=0)
    """Longest time for a file to arrive, in seconds."""
