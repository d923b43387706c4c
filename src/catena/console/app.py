"""The console's application: the guard around NiceGUI, with every registered page. One of it in a process.

console = Console(workspace, sessions, gateway="http://127.0.0.1:8000")
serve(build(console), listen(host, port), websockets=True)
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from socket import socket

from starlette.types import ASGIApp

from catena.console.login import Sessions
from catena.console.view import Console
from catena.core.errors import CatenaError, UsageError
from catena.core.registry import require
from catena.govern.access import Access
from catena.govern.config import AuthConfig
from catena.govern.crypto import open_signer
from catena.govern.keys import Keys
from catena.serve.hosts import LoopbackHosts, is_loopback
from catena.workspace import Workspace

STATIC = Path(__file__).with_name("static")
RECONNECT_S = 30.0
"""How long a page's state is kept for a browser whose connection has dropped, in seconds."""
PAGE_S = 30.0
"""How long a page may take until it is given up, in seconds."""


@contextmanager
def opened(
    workspace: Workspace,
    *,
    gateway: str | None = None,
    prefix: str = "",
    hours: float = 12.0,
    hosts: Sequence[str] = (),
    local: bool = True,
    recipes: Path | None = None,
) -> Iterator[Console]:
    """Open a console over a workspace. `local` says whether a workspace without keys needs none on loopback."""
    store = workspace.store
    access = Access(Keys(store.index).all, store.root, open_signer(store.root), AuthConfig()).open()
    try:
        sessions = Sessions(store.root, access, hours=hours, local=local)
        yield Console(workspace, sessions, gateway, prefix.rstrip("/"), tuple(hosts), recipes)
    finally:
        access.close()


def build(console: Console) -> ASGIApp:
    """Return the application. NiceGUI is imported here, and keeps its state in the process: call it once."""
    # NiceGUI reads and writes state of its own; none of it is used, and none of it belongs into the current folder.
    os.environ["NICEGUI_STORAGE_PATH"] = str(console.workspace.store.root / "console" / "nicegui")
    nicegui = require("nicegui", "console")
    from fastapi import FastAPI

    from catena.console.frame import framed, not_found
    from catena.console.guard import Guard
    from catena.console.language import words
    from catena.console.page import pages

    logging.getLogger("nicegui").addFilter(_unexpected)
    words()  # a mistake in a file of words shows here, and not when a page is asked for
    for page in pages():
        build_page = nicegui.ui.page(page.path, response_timeout=PAGE_S, reconnect_timeout=RECONNECT_S)
        build_page(framed(console, page))
    nicegui.app.add_static_files("/static", STATIC, max_cache_age=31_536_000)
    style = f"{console.prefix}/static/console.css?{_version()}"
    nicegui.ui.add_head_html(f'<link rel="stylesheet" href="{style}">', shared=True)
    nicegui.app.colors(primary="#0f6b62", positive="#1f7a4d", negative="#b3261e", warning="#8a5a00", info="#33566f")
    outer = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    nicegui.ui.run_with(
        outer,
        root=not_found(console),
        title="Catena",
        favicon=STATIC / "mark.svg",
        tailwind=False,
        show_welcome_message=False,
        reconnect_timeout=RECONNECT_S,
        message_history_length=2000,
    )
    guard = Guard(outer, console)
    # Names of other machines can be trusted to lead here only where a session decides, and nothing is open without one.
    return guard if console.sessions.only_keys else LoopbackHosts(guard, console.hosts)


def require_keys_beyond(listener: socket, console: Console) -> None:
    """Close the listener and raise `UsageError` where the network would reach a workspace without keys."""
    address = listener.getsockname()[0]
    if not is_loopback(address) and console.sessions.local:
        listener.close()
        raise UsageError(
            f"the workspace has no keys: a console on {address} would let anybody in",
            hint="Make one with: catena keys create NAME --role admin",
        )


def _unexpected(record: logging.LogRecord) -> bool:
    """Tell whether a record is more than what a person was told on the page: a mistyped time is nothing for the log."""
    return not (record.exc_info and isinstance(record.exc_info[1], CatenaError))


def _version() -> str:
    return sha256((STATIC / "console.css").read_bytes()).hexdigest()[:8]
