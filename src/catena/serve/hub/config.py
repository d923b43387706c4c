"""Bounds of the hub; `settings.py` has them as `hub.*`."""

from __future__ import annotations

from pydantic import Field

from catena.core.config import Config


class HubConfig(Config):
    """Bounds of the hub."""

    public: bool = False
    """With `--auth`: whether repositories that are not private are read without a key."""
    inline_bytes: int = Field(default=256 << 20, ge=1 << 20)
    """Largest file that clients send inside a commit. A larger one goes by Git LFS, for which clients with the package
    `hf_xet` need HF_HUB_DISABLE_XET=1."""
    max_file_bytes: int = Field(default=1 << 40, ge=1)
    """Largest file of a repository."""
    max_commit_bytes: int = Field(default=2 << 30, ge=1 << 20)
    """Largest body of a commit: its inline files are a third longer there than on disk."""
    max_files: int = Field(default=100_000, ge=1)
    """Most files of a repository, and most operations of a commit."""
    safetensors_only: bool = False
    """Whether a push with a pickle (which runs code when it is loaded) is refused; otherwise it is flagged."""
    idle_s: float = Field(default=60.0, gt=0)
    """Longest time that a client may send nothing in the middle of a body, in seconds."""
    upload_hours: float = Field(default=24.0, gt=0)
    """How long the address that a client gets for an upload stays good, in hours."""
