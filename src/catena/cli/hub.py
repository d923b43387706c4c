"""`catena hub serve | list | search | show | card | pull | push`: the workspace as a hub, and other hubs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from catena.cli.session import Session, session_of

if TYPE_CHECKING:
    from catena.govern.access import Access
    from catena.govern.config import GovernConfig
    from catena.hub.store import Store


def serve(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes any free one.  [default: 8500]")] = None,
    auth: Annotated[bool, typer.Option("--auth", help="Ask for an API key: catena keys create.")] = False,
    public: Annotated[bool, typer.Option("--public", help="With --auth: reading needs no key.")] = False,
    audit: Annotated[bool, typer.Option("--audit", help="Write down every push and removal.")] = False,
    hosts: Annotated[
        list[str] | None, typer.Option("--allow-host", metavar="NAME", help="A further name that it answers to.")
    ] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change a setting: hub.inline_bytes=1000000.")
    ] = None,
) -> None:
    """Serve models and datasets to Hugging Face clients until Ctrl-C: they work unchanged with HF_ENDPOINT."""
    from catena.serve.governed import require_auth_beyond
    from catena.serve.hub.app import build_hub
    from catena.serve.server import listen, serve as serve_app

    session = session_of(context)
    switches = {"govern.auth.on": auth, "hub.public": public, "govern.audit.on": audit}
    on = [f"{name}=true" for name, wanted in switches.items() if wanted]
    settings = session.settings((*(assignments or ()), *on))
    bounds, govern = settings.hub, settings.govern
    with session.open(create=True) as workspace, workspace.store.lock("gc", shared=True), ExitStack() as stack:
        listener = stack.enter_context(closing(listen(host or bounds.host, bounds.port if port is None else port)))
        require_auth_beyond(listener, govern)
        access, act = stack.enter_context(_governed(workspace.store, govern))
        allowed = (*settings.serve.hosts, *(hosts or ()))
        app = build_hub(workspace.store, bounds, access=access, hosts=allowed, act=act)
        serve_app(app, listener, config=settings.serve, on_ready=lambda url: _ready(session, url))


@contextmanager
def _governed(store: Store, config: GovernConfig) -> Iterator[tuple[Access | None, Any]]:
    """Open who may ask and what is written down, as the settings say."""
    from catena.govern.access import Access
    from catena.govern.audit.log import Log
    from catena.govern.crypto import open_signer
    from catena.govern.keys import Keys
    from catena.govern.tokens import Tokens

    with ExitStack() as stack:
        log = stack.enter_context(Log(store.root, config.audit)) if config.audit.on else None
        access = None
        if config.auth.on:
            tokens = Tokens(config.auth.jwt) if config.auth.jwt.issuer else None
            access = Access(Keys(store.index).all, store.root, open_signer(store.root), config.auth, tokens).open()
            stack.callback(access.close)
        yield access, (log.act if log is not None else lambda event: None)


def _ready(session: Session, url: str) -> None:
    if session.out.json:
        session.out.value({"url": url})
    else:
        session.out.line(f"hub at {url}: HF_ENDPOINT={url}  (Ctrl-C ends)")


COMMANDS = (
    (
        "serve",
        serve,
        "  catena hub serve\n"
        "  catena hub serve --host 0.0.0.0 --port 8500 --auth --public\n"
        '  HF_ENDPOINT=http://127.0.0.1:8500 python -c "import transformers; ..."',
    ),
)
