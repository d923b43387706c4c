"""Command about many replicas: up. The gateway runs in this process, each replica in one of its own."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from catena.cli.session import Session, session_of
from catena.core.errors import EnvironmentProblem, NotFound, environment_problem
from catena.core.registry import require

if TYPE_CHECKING:
    from socket import socket

    from starlette.middleware import Middleware
    from starlette.types import ASGIApp

    from catena.govern.config import GovernConfig
    from catena.hub.store import Store
    from catena.serve.config import ServeConfig
    from catena.serve.gateway.app import Gateway
    from catena.serve.gateway.config import DeployConfig, ModelConfig
    from catena.serve.gateway.standing import Standing


def up(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="DEPLOY", help="What to serve, and how: a deploy.yaml.")],
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change a value: models.helper.replicas.max=4.")
    ] = None,
    grpc: Annotated[
        int | None, typer.Option("--grpc", metavar="PORT", help="Answer over gRPC too, on the same address.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Read the file, and start nothing.")] = False,
) -> None:
    """Start a gateway with replicas of models, until Ctrl-C. All stand behind one address and are kept well."""
    from catena.serve.gateway.config import read_deploy

    session = session_of(context)
    config = read_deploy(file, tuple(assignments or ()))
    if check:
        session.out.value(config.model_dump(mode="json")) if session.out.json else session.out.line(f"{file} is good")
        return
    run_gateway(session, config, grpc)


def run_replicas(
    session: Session,
    name: str,
    model: Mapping[str, Any],
    place: tuple[str, int],
    bounds: tuple[ServeConfig, GovernConfig],
    grpc: int | None = None,
) -> None:
    """Serve one model by so many processes (`serve --replicas`), with the settings of `catena serve`."""
    from catena.core.config import parse
    from catena.serve.config import ServeConfig
    from catena.serve.gateway.config import DeployConfig

    count, (serve, govern) = model["replicas"], bounds
    http = {field: getattr(serve, field) for field in ServeConfig.model_fields}
    one = {**model, "replicas": {"min": count, "max": count}}
    values = {"host": place[0], "port": place[1], "models": {name: one}, "http": http, "govern": govern}
    run_gateway(session, parse(DeployConfig, values, where="serve --replicas"), grpc)


def run_gateway(session: Session, config: DeployConfig, grpc: int | None = None) -> None:
    """Serve until a signal comes. Raises what keeps the replicas from starting."""
    require("aiohttp")
    from catena.govern.compliance_kept import remember
    from catena.serve.gateway.app import Gateway
    from catena.serve.governed import require_auth_beyond, sealer_of
    from catena.serve.releases.tags import Tags
    from catena.serve.running import Running, announced
    from catena.serve.server import listen, serve, url_of

    with ExitStack() as stack:
        store, standing, middleware = _opened(session, config, stack)
        root = store.root if store else None
        if store is not None:
            remember(store.root, _places(config, store))
        config = _queue_of(config, store)
        state = _state_folder((root or Path.cwd()) / config.state)
        listener = stack.enter_context(closing(listen(config.host, config.port)))
        require_auth_beyond(listener, config.govern)
        announce = stack.enter_context(announced(root)) if root else None

        def ready() -> None:
            url, names = f"{url_of(listener)}/v1", list(config.models)
            if announce is not None:
                announce(Running(url_of(listener), tuple(names), time.time(), replicas=True))
            if session.out.json:
                session.out.value({"url": url, "models": names})
            else:
                session.out.line(f"{', '.join(names)} at {url}  (Ctrl-C ends)")

        def command(name: str, model: ModelConfig) -> Sequence[str]:
            return model.script or serve_command(name, model, store, standing)

        for name, model in config.models.items():
            if model.owned:
                session.out.note(f"starting {model.replicas.min} of {name}")
        gateway = Gateway(
            config,
            state=state,
            commands=command,
            on_ready=ready,
            on_problem=lambda: os.kill(os.getpid(), signal.SIGTERM),
            middleware=middleware,
            tags=Tags(store) if store else None,
            sealer=sealer_of(store, config.govern) if store else None,
            standing=standing,
        )
        app, running = _with_console(gateway, config, listener, root)
        beside = with_grpc(session, gateway, (config.host, grpc), config.http, running)
        serve(app, listener, config=config.http, beside=beside, websockets=config.console)
    if gateway.problem is not None:
        raise gateway.problem


def _state_folder(folder: Path) -> Path:
    """Make the folder of cache, jobs and releases. Raises `EnvironmentProblem` where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        told = EnvironmentProblem(f"the state folder {folder} cannot be made: {error.strerror}", hint="Set state.")
        raise environment_problem(error, folder) or told from error
    return folder


def _with_console(
    gateway: Gateway, config: DeployConfig, listener: socket, root: Path | None
) -> tuple[ASGIApp, AbstractAsyncContextManager[None]]:
    """Put the web console in front of a gateway, where there is to be one; returns that, and what runs beside it."""
    if not config.console:
        return gateway, gateway.running()
    from catena.serve.gateway.beside import PREFIX, Beside
    from catena.serve.hosts import is_loopback
    from catena.serve.server import url_of

    if root is None:
        raise NotFound("a console needs a workspace, and there is none here", hint="Make one with: catena init")
    require("nicegui", "console")
    words = ["catena", "console", "--port", "0", "--json", "--workspace", str(root)]
    words += ["--prefix", PREFIX, "--gateway", url_of(listener)]
    words += [part for name in config.http.hosts for part in ("--allow-host", name)]
    if config.govern.auth.on or not is_loopback(listener.getsockname()[0]):
        words.append("--sign-in")
    made = Beside(gateway, words)
    return made, made.running(gateway.running())


def _opened(
    session: Session, config: DeployConfig, stack: ExitStack
) -> tuple[Store | None, Standing | None, Sequence[Middleware]]:
    """Open the workspace for as long as `stack`; returns its store, how its index stands, and what governs.

    Only a deployment that needs nothing of it goes without a workspace. Its database may be away.
    """
    from catena.serve.gateway.standing import Standing
    from catena.serve.governed import governed

    govern, models = config.govern, [*config.models.values(), *config.candidates.values()]
    try:
        store = stack.enter_context(session.open(without_index=True)).store
    except NotFound:
        if any(model.model for model in models) or govern.auth.on or govern.audit.on or govern.moderation.on:
            raise
        return None, None, ()
    standing = Standing(store, store.root / config.state)
    for model in models:
        for ref in filter(None, (model.model, *model.adapters.values())):
            standing.digest_of(ref)
    return store, standing, stack.enter_context(governed(store, govern, config.http))


def with_grpc(
    session: Session,
    app: ASGIApp,
    place: tuple[str, int | None],
    config: ServeConfig,
    beside: AbstractAsyncContextManager[None] | None = None,
) -> AbstractAsyncContextManager[None] | None:
    """Return what runs beside a server: a gRPC side too, where a port is given for it."""
    host, port = place
    if port is None:
        return beside
    require("grpc", "grpc")
    from catena.serve.grpc.server import both, running

    def ready(port: int) -> None:
        session.out.note(f"gRPC at {host}:{port}")

    side = running(app, host, port, config, ready)
    return both(side) if beside is None else both(beside, side)


def _places(config: DeployConfig, store: Store) -> list[str]:
    """Return where words of requests are kept, for who checks that they are sealed."""
    from catena.govern.compliance_kept import INDEX

    shared = store.index.engine.dialect.name == "postgresql"
    usual = INDEX if shared else str(config.state / "jobs.db")
    places = [config.jobs.store or usual, config.jobs.files or str(config.state / "files")] if config.jobs.on else []
    if config.cache.store not in ("", "memory"):
        places.append(str(config.state / "answers.sqlite") if config.cache.store == "sqlite" else config.cache.store)
    return places


def _queue_of(config: DeployConfig, store: Store | None) -> DeployConfig:
    """Let jobs be kept in the workspace's PostgreSQL, where it has one."""
    if store is None or config.jobs.store or store.index.engine.dialect.name != "postgresql":
        return config
    url = store.index.engine.url.render_as_string(hide_password=False)
    return config.model_copy(update={"jobs": config.jobs.model_copy(update={"store": url})})


def serve_command(
    name: str, model: ModelConfig, store: Store | None, standing: Standing | None = None
) -> Sequence[str]:
    """Return how a replica of a stored model is started; keys and audit are the gateway's.

    The model is named by its digest: a tag that moves must not make replicas differ.
    """
    from catena.serve.gateway.standing import Standing

    assert store is not None
    digest_of = (standing or Standing(store, store.root / "gateway")).digest_of
    digest = digest_of(model.model)
    words = ["catena", "serve", digest, "--as", name, "--host", "127.0.0.1", "--port", "0", "--json"]
    words += ["--workspace", str(store.root)]
    for part in ("auth", "audit", "moderation"):
        words += ["--set", f"govern.{part}.on=false"]
    for adapter, ref in model.adapters.items():
        words += ["--adapter", f"{adapter}={digest_of(ref)}"]
    for option, value in model.engine.items():
        words += ["--engine", f"{option}={json.dumps(value)}"]
    return words


UP_EXAMPLES = """\
  catena up deploy.yaml
  catena up deploy.yaml --set models.helper.replicas.max=4 --set port=9000
  catena up deploy.yaml --grpc 50051
  catena up deploy.yaml --check"""
COMMANDS = (("up", up, UP_EXAMPLES),)
