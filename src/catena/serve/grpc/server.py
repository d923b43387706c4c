"""A gRPC server beside the HTTP one, in the same event loop: calls, health, reflection.

async with running(app, "127.0.0.1", 50051) as port: ...
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from starlette.types import ASGIApp

from catena.core.errors import PortInUse
from catena.core.registry import require
from catena.serve.config import ServeConfig
from catena.serve.inner import Asked, ask

logger = logging.getLogger(__name__)
NAME = "catena.v1.Catena"
LOOK_S = 1.0
GRACE_S = 30.0


@asynccontextmanager
async def running(
    app: ASGIApp,
    host: str,
    port: int,
    config: ServeConfig | None = None,
    on_ready: Callable[[int], None] | None = None,
) -> AsyncIterator[int]:
    """Serve an application's models over gRPC while the block runs; gives the port (0 takes any free one)."""
    grpc = require("grpc", "grpc")
    checks, reflect = (
        require("grpc_health.v1.health", "grpc").aio,
        require("grpc_reflection.v1alpha.reflection", "grpc"),
    )
    health_pb2 = require("grpc_health.v1.health_pb2", "grpc")
    health_grpc = require("grpc_health.v1.health_pb2_grpc", "grpc")
    from catena.serve.grpc import catena_pb2_grpc
    from catena.serve.grpc.service import Service

    bounds = config or ServeConfig()
    server = grpc.aio.server(
        maximum_concurrent_rpcs=bounds.max_connections,
        options=(
            ("grpc.so_reuseport", 0),  # or a second server takes half of the first one's calls
            ("grpc.max_receive_message_length", bounds.max_body_bytes),
            ("grpc.max_metadata_size", bounds.max_header_bytes),
        ),
    )
    catena_pb2_grpc.add_CatenaServicer_to_server(Service(app), server)
    health = checks.HealthServicer()
    health_grpc.add_HealthServicer_to_server(health, server)
    names = (NAME, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflect.SERVICE_NAME)
    reflect.enable_server_reflection(names, server)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound: int = server.add_insecure_port(address)
    except RuntimeError as error:
        raise PortInUse(f"cannot listen on {address} for gRPC", hint="Choose another with --grpc.") from error
    await server.start()
    watching = asyncio.create_task(_watch(app, health, health_pb2.HealthCheckResponse))
    try:
        if on_ready is not None:
            on_ready(bound)
        yield bound
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await health.enter_graceful_shutdown()
        await server.stop(GRACE_S)


async def _watch(app: ASGIApp, health: object, states: object) -> None:
    """Say that the models are served for as long as the application says so."""
    path = "/ready"
    while True:
        try:
            status = (await ask(app, Asked(path, method="GET", client="health"))).status
        except Exception:  # or it would stay what it was, for ever
            logger.exception("the state of the models cannot be asked for")
            status = 500
        if status == 404 and path == "/ready":
            path = "/health"
            continue
        state = states.SERVING if status == 200 else states.NOT_SERVING  # type: ignore[attr-defined]
        for name in ("", NAME):
            await health.set(name, state)  # type: ignore[attr-defined]
        await asyncio.sleep(LOOK_S)


@asynccontextmanager
async def both(*parts: AbstractAsyncContextManager[object]) -> AsyncIterator[None]:
    """Run several things beside a server."""
    async with contextlib.AsyncExitStack() as stack:
        for part in parts:
            await stack.enter_async_context(part)
        yield
