"""Governance of a server, put together from the settings: what `build_app` gets as its middlewares.

with governed(store, settings.govern, settings.serve) as middleware:
    serve(build_app(models, middleware=middleware), listener)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from socket import socket

from starlette.middleware import Middleware

from catena.core.errors import UsageError
from catena.core.types import ModelVersion
from catena.govern.access import Access
from catena.govern.audit.log import Log
from catena.govern.config import GovernConfig
from catena.govern.crypto import open_signer
from catena.govern.feedback.book import Book
from catena.govern.keys import Keys
from catena.govern.moderation.classifier import Filter, load_filter
from catena.govern.moderation.moderator import Moderator
from catena.govern.seal import Sealer
from catena.govern.tokens import Tokens
from catena.hub.store import Store
from catena.serve.config import ServeConfig
from catena.serve.hosts import is_loopback
from catena.serve.middleware.audit import Audit
from catena.serve.middleware.auth import Auth
from catena.serve.middleware.desk import WorkspaceDesk
from catena.serve.middleware.feedback import Feedback
from catena.serve.middleware.keys import KeyDesk
from catena.serve.middleware.moderation import Moderation


@contextmanager
def governed(store: Store, config: GovernConfig, serve: ServeConfig) -> Iterator[list[Middleware]]:
    """Open what the settings switch on, in a workspace; closed when the block ends."""
    with ExitStack() as stack:
        made: list[Middleware] = []
        if config.audit.on:
            log = stack.enter_context(Log(store.root, config.audit))
            log.act({"act": "serve.start", "settings": config.model_dump(mode="json")})
            stack.callback(log.act, {"act": "serve.stop"})
            made.append(Middleware(Audit, log=log, config=config.audit))
        if config.auth.on:
            tokens = Tokens(config.auth.jwt) if config.auth.jwt.issuer else None
            access = Access(Keys(store.index).all, store.root, open_signer(store.root), config.auth, tokens).open()
            stack.callback(access.close)
            made.append(Middleware(Auth, access=access, config=serve))
            log_ = log if config.audit.on else None
            made.append(Middleware(KeyDesk, keys=Keys(store.index), access=access, config=serve, log=log_))
            made.append(Middleware(WorkspaceDesk, store=store, log=log_, config=config.audit))
        moderator = None
        if config.moderation.on:
            moderator = stack.enter_context(Moderator(config.moderation, _filter(store, config)))
        if config.audit.on and config.feedback.on:
            book = stack.enter_context(Book(store.root, config.audit, config.feedback))
            made.append(Middleware(Feedback, book=book, config=serve, moderator=moderator))
        if moderator is not None:
            made.append(Middleware(Moderation, moderator=moderator, config=serve))
        yield made


def _filter(store: Store, config: GovernConfig) -> Filter | None:
    ref = config.moderation.classifier
    if not ref:
        return None
    return load_filter(store.checkout(store.resolve(ref, ModelVersion)), config.moderation.threshold)


def sealer_of(store: Store, config: GovernConfig) -> Sealer | None:
    """Return what seals answers in the cache, jobs and their files; None where nothing governs."""
    if not config.auth.on and not config.audit.on:
        return None
    return Sealer(store.root, config.audit, subjects=config.auth.on)


def require_auth_beyond(listener: socket, config: GovernConfig) -> None:
    """Close the listener and raise `UsageError` where anybody on the network could ask without a key."""
    address = listener.getsockname()[0]
    if config.auth.on or config.allow_open or is_loopback(address):
        return
    listener.close()
    raise UsageError(
        f"a server on {address} without --auth would answer anybody who reaches it",
        hint="Use --auth (and catena keys create), listen on 127.0.0.1, or say --set govern.allow_open=true.",
    )
