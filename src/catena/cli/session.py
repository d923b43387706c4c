"""A session: what the options that every command takes come to. Commands find it in their context."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from catena.cli.out import Out

if TYPE_CHECKING:
    from catena.core.events import Listener
    from catena.settings import Settings
    from catena.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Session:
    """Where to print, and which workspace was asked for."""

    out: Out
    workspace: Path | None = None
    debug: bool = False

    def settings(self, assignments: Sequence[str] = ()) -> Settings:
        """Return the settings that hold here."""
        from catena.settings import load_settings

        return load_settings(workspace=self.workspace, environment=os.environ, assignments=assignments)

    @contextmanager
    def open(self, *, create: bool = False, without_index: bool = False) -> Iterator[Workspace]:
        """Open the workspace; with `create` one is made where there is none. Raises `NotFound` otherwise.

        With `without_index` also while its database is away, for who can go on with what is known.
        """
        from catena.workspace import open_with

        with open_with(self.settings(), create=create, without_index=without_index) as workspace:
            yield workspace

    @contextmanager
    def open_or_empty(self) -> Iterator[Workspace]:
        """Open the workspace; where there is none, an empty one that is gone afterwards: who only looks makes none."""
        from tempfile import TemporaryDirectory

        from catena.workspace import open_with

        settings = self.settings()
        if settings.workspace is not None and (settings.workspace / "workspace.json").exists():
            with open_with(settings, create=False) as workspace:
                yield workspace
            return
        with TemporaryDirectory(prefix="catena-") as folder:
            elsewhere = settings.model_copy(update={"workspace": Path(folder) / "empty", "index": "", "files": ""})
            with open_with(elsewhere, create=True) as workspace:
                yield workspace

    @contextmanager
    def listeners(
        self, tensorboard: Path | None = None, mlflow: str | None = None, *, events: bool = False
    ) -> Iterator[tuple[Listener, ...]]:
        """Give everyone who listens to a run: what shows it, and the writers that options or settings ask for."""
        from catena.flow.writers import writers

        track = self.settings().track
        wanted = writers(tensorboard or track.tensorboard, track.mlflow if mlflow is None else mlflow)
        with self.out.progress(events=events) as shown, wanted as written:
            yield (*shown, *written)


def session_of(context: typer.Context) -> Session:
    """Return the session that `main` put into the context."""
    session = context.obj
    assert isinstance(session, Session)
    return session
