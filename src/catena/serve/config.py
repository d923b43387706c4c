"""Bounds and defaults of the HTTP side; `settings.py` has them as `serve.*`."""

from __future__ import annotations

from pydantic import Field

from catena.core.config import Config


class ServeConfig(Config):
    """Bounds and defaults of the HTTP side."""

    max_body_bytes: int = Field(default=1 << 20, ge=1)
    """Largest body of a request."""
    max_choices: int = Field(default=8, ge=1)
    """Most answers to one prompt (`n`)."""
    max_prompts: int = Field(default=256, ge=1)
    """Most prompts, texts or questions in one request."""
    max_tokens: int = Field(default=512, ge=1)
    """Length of an answer where the request does not say it; never more than the model's context."""
    temperature: float = Field(default=1.0, ge=0)
    """Where the request does not say it; 1 is what the OpenAI schema says."""
    max_connections: int = Field(default=1000, ge=1)
    """Most connections at once; the next gets 503 and is closed."""
    max_header_bytes: int = Field(default=1 << 16, ge=256)
    """Largest head of a request: its first line and headers."""
    header_timeout_s: float = Field(default=10.0, gt=0)
    """Longest time from a connection, or from the beginning of its next request, to the end of the headers, in
    seconds."""
    body_timeout_s: float = Field(default=30.0, gt=0)
    """Longest time for a request's body to arrive, in seconds."""
    keep_alive_s: int = Field(default=5, ge=1, le=3600)
    """So long a connection stays open between two requests, in seconds. A client that asks just when it closes must ask
    again: more than clients pause makes that rare, and holds more connections."""
    send_timeout_s: float = Field(default=60.0, gt=0)
    """Longest time that a client may take no more of its answer, in seconds; then the connection is cut."""
    hosts: tuple[str, ...] = ()
    """Further names (without port) that a server on loopback answers to, for example that of a proxy before it."""
