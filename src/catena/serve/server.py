"""Running an application: uvicorn on a socket that was bound before, until a signal comes, or beside the caller.

Bind first, load the model after: a port in use is found out in a millisecond, not after a minute of loading.

    listener = listen("127.0.0.1", 8000)
    serve(build_app({"helper": open_engine(folder)}), listener, on_ready=print)
"""

from __future__ import annotations

import asyncio
import errno
import gc
import importlib
import ipaddress
import signal
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from catena.core.errors import EnvironmentProblem, NotWritable, PortInUse, UsageError
from catena.serve.config import ServeConfig
from catena.serve.connections import allow_files, bounded
from catena.serve.hosts import BOUND

GRACE_S = 30
OWN_FILES = 256
"""Files that are open besides connections."""
BACKLOG = 2048
START_S = 30.0
COLLECT = (5_000, 20, 20)
"""Thresholds of the three generations of garbage: less often than Python's own (700, 10, 10)."""
SWITCH_S = 0.001
"""So long a thread (of the audit, of an engine) waits for the interpreter's lock while the event loop is busy; Python's
own 0.005 is paid after every call of the system."""


def listen(host: str = "127.0.0.1", port: int = 8000) -> socket.socket:
    """Bind and listen; port 0 takes any free one. Connections wait in the backlog until `serve` takes them.

    Raises `PortInUse`, `NotWritable` for a port below 1024 that needs rights, `UsageError` for an unknown host.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"there is no port {port}", hint="Ports go from 0 (any free one) to 65535.")
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (socket.gaierror, UnicodeError) as error:
        raise UsageError(f"the host {host!r} is unknown here", hint="127.0.0.1 is this machine only.") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"port {port} on {host} is in use by another process",
                hint="Choose another with --port; --port 0 takes any free one.",
            ) from error
        if error.errno == errno.EACCES:
            raise NotWritable(f"port {port} needs rights that this user lacks", hint="Use 1024 or above.") from error
        raise EnvironmentProblem(f"cannot listen on {host}:{port}: {error.strerror}") from error
    listener.setblocking(False)
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the URL under which this machine reaches the listener."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    app: ASGIApp,
    listener: socket.socket,
    *,
    config: ServeConfig | None = None,
    on_ready: Callable[[str], None] | None = None,
    grace_seconds: int = GRACE_S,
    beside: AbstractAsyncContextManager[None] | None = None,
    websockets: bool = False,
) -> None:
    """Serve until SIGTERM or SIGINT; then take nothing new, finish what runs for at most `grace_seconds`, and return.

    A second SIGINT ends at once. `on_ready` gets the URL when requests are taken. `beside` is entered before the first
    request and left after the last, in the same event loop. `websockets` takes those too, and runs the application's
    lifespan. Call it from the main thread.
    """
    server = _Server(_config(app, listener, grace_seconds, config, websockets), listener, on_ready)
    signals = (signal.SIGTERM, signal.SIGINT)
    previous = [signal.signal(one, server.handle_exit) for one in signals]
    try:
        with _own_process(server):
            _run(_beside(server, listener, beside))
    finally:
        for one, handler in zip(signals, previous, strict=True):
            signal.signal(one, handler)
        listener.close()


@contextmanager
def _own_process(server: _Server) -> Iterator[None]:
    """Set the interpreter up for short waits, in a process that is the server's own.

    A full collection of garbage walks every object there is: 150,000 of modules and models took 90 ms, in which nobody
    was answered, every few thousand requests. What is there when requests are first taken stays until the end: it is
    set aside, and garbage is looked for among what requests leave behind.
    """
    thresholds, switch = gc.get_threshold(), sys.getswitchinterval()

    def set_aside() -> None:
        gc.collect()
        gc.freeze()
        gc.set_threshold(*COLLECT)

    server.when_started = set_aside
    sys.setswitchinterval(SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(switch)
        gc.set_threshold(*thresholds)
        gc.unfreeze()


@contextmanager
def background(
    app: ASGIApp,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    config: ServeConfig | None = None,
    grace_seconds: int = 5,
    beside: AbstractAsyncContextManager[None] | None = None,
) -> Iterator[str]:
    """Serve from a thread while the block runs; gives the URL."""
    listener = listen(host, port)
    ready = threading.Event()
    failure: list[BaseException] = []
    server = _Server(_config(app, listener, grace_seconds, config), listener, lambda url: ready.set())

    def run() -> None:
        try:
            _run(_beside(server, listener, beside))
        except BaseException as error:  # noqa: BLE001  handed to the caller, who waits for it
            failure.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="catena-serve", daemon=True)
    thread.start()
    try:
        if not ready.wait(START_S) or failure:
            raise EnvironmentProblem("the server did not start") from (failure[0] if failure else None)
        yield url_of(listener)
    finally:
        server.should_exit = True
        thread.join(grace_seconds + START_S)
        listener.close()


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run on uvloop, which spends half as much on a connection, or on asyncio's own loop where it is not installed."""
    try:
        factory: Callable[[], asyncio.AbstractEventLoop] | None = importlib.import_module("uvloop").new_event_loop
    except ImportError:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(work)


async def _beside(server: _Server, listener: socket.socket, beside: AbstractAsyncContextManager[None] | None) -> None:
    async with beside or nullcontext():
        await server.serve(sockets=[listener])


def _config(
    app: ASGIApp, listener: socket.socket, grace_seconds: int, config: ServeConfig | None, websockets: bool = False
) -> uvicorn.Config:
    bounds = config or ServeConfig()
    allow_files(bounds.max_connections + OWN_FILES)
    bound = listener.getsockname()[0]

    async def told(scope: Scope, receive: Receive, send: Send) -> None:
        # A connection to 127.0.0.1 may be one to 0.0.0.0: only the listener knows.
        await app({**scope, BOUND: bound}, receive, send)

    return uvicorn.Config(
        told,
        loop="asyncio",
        http=bounded(bounds),
        ws="websockets-sansio" if websockets else "none",
        lifespan="auto" if websockets else "off",
        log_config=None,  # logging is set up at entry points, never by a library
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=grace_seconds,
        timeout_keep_alive=bounds.keep_alive_s,
    )


class _Server(uvicorn.Server):
    """Says when it is ready, and leaves signals to `serve`: uvicorn would raise them again after the shutdown."""

    def __init__(self, config: uvicorn.Config, listener: socket.socket, on_ready: Callable[[str], None] | None) -> None:
        super().__init__(config)
        self._url = url_of(listener)
        self._on_ready = on_ready
        self.when_started: Callable[[], None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.when_started is not None:
            self.when_started()
        if self.started and self._on_ready is not None:
            self._on_ready(self._url)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Shut down; a second Ctrl-C does not wait any longer."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True
