"""Tokens of an identity provider: signed JWTs, checked by the provider's public keys (JWKS, RFC 7517).

Only asymmetric signatures of the configured kinds count, whatever a token says of itself. Keys are fetched when they
are first needed, when they are old, and when a token names one that is unknown (at most every half minute, so that
made-up names do not make us ask for ever); while the provider is away the last ones go on.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

from catena.core.errors import ConfigError, RemoteError
from catena.core.registry import require
from catena.govern.access import Denied
from catena.govern.config import JwtConfig
from catena.govern.roles import ROLES, Principal, Role

logger = logging.getLogger(__name__)
FETCH_S = 10.0
AGAIN_S = 30.0
LARGEST = 1 << 20
MOST_USED = 100_000


def fetch(source: str) -> Any:
    """Read JSON from an http(s) URL or a file; raises `RemoteError`."""
    try:
        if "://" not in source:
            return json.loads(Path(source).read_bytes())
        if not source.startswith(("https://", "http://")):
            raise ConfigError(f"{source!r} is no http(s) URL")
        with urllib.request.urlopen(source, timeout=FETCH_S) as answer:
            return json.loads(answer.read(LARGEST))
    except (URLError, OSError, ValueError) as error:
        raise RemoteError(f"{source} cannot be read: {error}") from error


class Tokens:
    """Call it with a token; it returns the principal or raises `Denied`. For threads."""

    def __init__(self, config: JwtConfig, fetch: Callable[[str], Any] = fetch) -> None:
        self._jwt = require("jwt", "govern")
        self._config, self._fetch = config, fetch
        self._keys: dict[str, Any] = {}
        self._asked = -AGAIN_S
        self._fresh_until = 0.0
        self._lock = threading.Lock()
        self._used: dict[str, float] = {}

    def __call__(self, token: str) -> Principal:
        """Check a token."""
        config, jwt = self._config, self._jwt
        try:
            head = jwt.get_unverified_header(token)
            if head.get("alg") not in config.algorithms:
                raise Denied("the token's signature is of a kind that is not taken", code="invalid_token")
            claims = jwt.decode(
                token,
                self._key(str(head.get("kid", ""))),
                algorithms=[head["alg"]],
                audience=config.audience,
                issuer=config.issuer,
                leeway=config.leeway_s,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.ExpiredSignatureError as error:
            raise Denied("the token has expired", code="expired_token") from error
        except jwt.PyJWTError as error:
            # PyJWT's words tell what is wrong without a word of the token's content.
            raise Denied(f"the token is not valid: {error}", code="invalid_token") from error
        if config.one_use:
            self._once(claims)
        return self._principal(claims)

    def _principal(self, claims: Mapping[str, Any]) -> Principal:
        config = self._config
        named = _listed(_claim(claims, config.role_claim))
        ours: dict[str, Role] = dict(config.roles) or {role: role for role in ROLES}
        held: list[Role] = [ours[name] for name in named if name in ours]
        role = min(held, key=ROLES.index) if held else config.default_role
        if role is None:
            raise Denied("the token names no role that is known here", code="no_role", status=403)
        models = tuple(_listed(_claim(claims, config.models_claim))) if config.models_claim else ("*",)
        return Principal(str(claims["sub"])[:200], role, "jwt", models)

    def _once(self, claims: Mapping[str, Any]) -> None:
        id, now = str(claims.get("jti", "")), time.time()
        if not id:
            raise Denied("the token has no id (jti), and here each opens once", code="invalid_token")
        with self._lock:
            if id in self._used:
                raise Denied("the token was used before", code="replayed_token")
            if len(self._used) >= MOST_USED:
                self._used = {key: end for key, end in self._used.items() if end > now}
            if len(self._used) >= MOST_USED:
                raise Denied("too many tokens are in use", code="too_many_tokens", status=503)
            self._used[id] = float(claims["exp"]) + self._config.leeway_s

    def _key(self, id: str) -> Any:
        with self._lock:
            now = time.monotonic()
            stale = now > self._fresh_until or id not in self._keys
            if stale and now - self._asked >= AGAIN_S:
                self._asked = now
                try:
                    self._keys = self._read()
                    self._fresh_until = now + self._config.refresh_s
                except RemoteError as error:
                    logger.warning("the provider's keys are those of before: %s", error)
            if id in self._keys:
                return self._keys[id]
        raise Denied("the token is signed by a key that the provider does not show", code="invalid_token")

    def _read(self) -> dict[str, Any]:
        source = self._config.jwks
        if not source:
            about = self._fetch(self._config.issuer.rstrip("/") + "/.well-known/openid-configuration")
            if not isinstance(about, dict) or about.get("issuer") != self._config.issuer:
                raise RemoteError("the provider's configuration is of another issuer")
            source = str(about.get("jwks_uri", ""))
            if not source.startswith(("https://", "http://")):  # above all no file of ours
                raise RemoteError("the provider's configuration names no http(s) URL of its keys")
        found: dict[str, Any] = {}
        told = self._fetch(source)
        for one in told.get("keys", ()) if isinstance(told, dict) else ():
            if one.get("use", "sig") != "sig" or one.get("kty") == "oct":
                continue
            try:
                found[str(one.get("kid", ""))] = self._jwt.PyJWK(one).key
            except self._jwt.PyJWTError:
                continue  # a kind that this library does not know opens nothing
        if not found:
            raise RemoteError(f"{source} shows no keys")
        return found


def _claim(claims: Mapping[str, Any], path: str) -> Any:
    value: Any = claims
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _listed(value: Any) -> list[str]:
    if isinstance(value, str):
        return value.split()
    return [str(item) for item in value] if isinstance(value, list | tuple) else []
