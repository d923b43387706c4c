"""`catena console`: the web console over a workspace, until Ctrl-C."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from catena.cli.session import session_of
from catena.core.errors import UsageError
from catena.core.registry import require


def console(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes any free one.  [default: 8600]")] = None,
    gateway: Annotated[
        str | None, typer.Option(metavar="URL", help="The gateway that runs: deployments and the playground use it.")
    ] = None,
    prefix: Annotated[str, typer.Option(metavar="PATH", help="The path below which a proxy gives it: /console.")] = "",
    hosts: Annotated[
        list[str] | None, typer.Option("--allow-host", metavar="NAME", help="A further name that it answers to.")
    ] = None,
    must_sign_in: Annotated[
        bool, typer.Option("--sign-in", help="Ask for a key even where the workspace has none yet.")
    ] = False,
) -> None:
    """Show the workspace in a browser.

    Datasets, recipes, runs, models, evaluations, deployments, a playground, the audit."""
    session = session_of(context)
    if prefix and not (prefix.startswith("/") and prefix.strip("/")):
        raise UsageError(f"the prefix {prefix!r} is no path", hint="For example: --prefix /console")
    settings = session.settings()
    require("nicegui", "console")
    from catena.console.app import build, opened, require_keys_beyond
    from catena.serve.server import listen, serve

    place = settings.console
    with session.open(create=True) as workspace, workspace.store.lock("gc", shared=True):
        listener = listen(host or place.host, place.port if port is None else port)
        with (
            closing(listener),
            opened(
                workspace,
                gateway=gateway or place.gateway or None,
                prefix=prefix,
                hours=place.session_hours,
                hosts=(*settings.serve.hosts, *(hosts or ())),
                local=not must_sign_in,
                recipes=place.recipes,
            ) as made,
        ):
            require_keys_beyond(listener, made)

            def ready(url: str) -> None:
                if session.out.json:
                    session.out.value({"url": url + made.prefix})
                else:
                    session.out.line(f"console at {url}{made.prefix}  (Ctrl-C ends)")

            serve(build(made), listener, config=settings.serve, on_ready=ready, grace_seconds=3, websockets=True)


EXAMPLES = """\
  catena console
  catena console --port 9000 --gateway http://127.0.0.1:8000
  catena keys create ana --role admin; catena console --host 0.0.0.0 --allow-host models.example"""
COMMANDS = (("console", console, EXAMPLES),)
