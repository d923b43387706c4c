"""Tokens of an identity provider: only its signatures, for us, in time, with a role that is known."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from catena.core.errors import RemoteError
from catena.govern.access import Denied
from catena.govern.config import JwtConfig
from catena.govern.roles import Principal
from catena.govern.tokens import Tokens

ISSUER, AUDIENCE, JWKS = "https://id.example", "catena", "https://id.example/keys"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
OTHER = ed25519.Ed25519PrivateKey.generate()
PRIVATE: dict[str, Any] = {"rsa": RSA, "ec": EC, "ed": ED}


def public_keys() -> dict[str, Any]:
    made = {
        "rsa": jwt.algorithms.RSAAlgorithm.to_jwk(RSA.public_key()),
        "ec": jwt.algorithms.ECAlgorithm.to_jwk(EC.public_key()),
        "ed": jwt.algorithms.OKPAlgorithm.to_jwk(ED.public_key()),
    }
    return {"keys": [{**json.loads(text), "kid": kid, "use": "sig"} for kid, text in made.items()]}


class Provider:
    """What is behind the URLs; counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.away = False

    def __call__(self, url: str) -> Any:
        self.asked += 1
        if self.away:
            raise RemoteError("away")
        if url.endswith("/.well-known/openid-configuration"):
            return {"issuer": ISSUER, "jwks_uri": JWKS}
        assert url == JWKS
        return public_keys()


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture
def tokens_of(provider: Provider) -> Callable[..., Tokens]:
    def make(**options: Any) -> Tokens:
        return Tokens(JwtConfig(issuer=ISSUER, audience=AUDIENCE, **options), provider)

    return make


def claims(**changed: Any) -> dict[str, Any]:
    full = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "exp": time.time() + 600, "roles": ["developer"], **changed}
    return {name: value for name, value in full.items() if value is not None}


def token(kid: str = "ed", algorithm: str = "EdDSA", key: Any = None, **changed: Any) -> str:
    return jwt.encode(claims(**changed), key or PRIVATE[kid], algorithm=algorithm, headers={"kid": kid})


@pytest.mark.parametrize(("kid", "algorithm"), [("rsa", "RS256"), ("ec", "ES256"), ("ed", "EdDSA")])
def test_the_providers_signatures_are_taken(tokens_of: Callable[..., Tokens], kid: str, algorithm: str) -> None:
    assert tokens_of()(token(kid, algorithm)) == Principal("ada", "developer", "jwt")


def test_keys_may_be_a_file(tokens_of: Callable[..., Tokens], tmp_path: Any) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps(public_keys()))
    tokens = Tokens(JwtConfig(issuer=ISSUER, audience=AUDIENCE, jwks=str(path)))
    assert tokens(token()).subject == "ada"


BAD: dict[str, tuple[Callable[[], str], str]] = {
    "expired": (lambda: token(exp=time.time() - 600), "expired_token"),
    "not yet valid": (lambda: token(nbf=time.time() + 600), "invalid_token"),
    "of another issuer": (lambda: token(iss="https://evil.example"), "invalid_token"),
    "for another audience": (lambda: token(aud="other"), "invalid_token"),
    "without an end": (lambda: token(exp=None), "invalid_token"),
    "without a subject": (lambda: token(sub=None), "invalid_token"),
    "without an audience": (lambda: token(aud=None), "invalid_token"),
    "signed by a stranger": (lambda: token(key=OTHER), "invalid_token"),
    "signed by an unknown key": (
        lambda: jwt.encode(claims(), OTHER, algorithm="EdDSA", headers={"kid": "other"}),
        "invalid_token",
    ),
    "not signed": (
        lambda: jwt.encode(claims(), None, algorithm="none", headers={"kid": "ed"}),
        "invalid_token",
    ),
    "signed with the public key as a shared secret": (
        lambda: jwt.encode(claims(), "x" * 64, algorithm="HS256", headers={"kid": "rsa"}),
        "invalid_token",
    ),
    "without a role": (lambda: token(roles=None), "no_role"),
    "with an unknown role": (lambda: token(roles=["emperor"]), "no_role"),
    "garbage": (lambda: "a.b.c", "invalid_token"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_token_is_refused_that_is(tokens_of: Callable[..., Tokens], name: str) -> None:
    make, code = BAD[name]
    with pytest.raises(Denied) as caught:
        tokens_of()(make())
    assert caught.value.code == code


def test_a_changed_token_is_refused(tokens_of: Callable[..., Tokens]) -> None:
    head, _, signature = token().split(".")
    forged = jwt.utils.base64url_encode(json.dumps(claims(roles=["admin"])).encode()).decode()
    with pytest.raises(Denied):
        tokens_of()(f"{head}.{forged}.{signature}")


def test_roles_may_be_called_otherwise_and_the_highest_counts(tokens_of: Callable[..., Tokens]) -> None:
    tokens = tokens_of(role_claim="realm.roles", roles={"staff": "user", "ops": "admin"})
    assert tokens(token(realm={"roles": ["staff", "ops", "x"]})).role == "admin"
    assert tokens(token(realm={"roles": "staff"})).role == "user"
    with pytest.raises(Denied):
        tokens(token(realm={"roles": ["admin"]}))  # our own words count only where there is no table


def test_models_come_from_a_claim(tokens_of: Callable[..., Tokens]) -> None:
    tokens = tokens_of(models_claim="models", default_role="user")
    assert tokens(token(roles=None, models=["helper*"])).models == ("helper*",)
    assert tokens(token(roles=None)).models == ()


def test_a_token_opens_once_where_that_is_asked_for(tokens_of: Callable[..., Tokens]) -> None:
    tokens = tokens_of(one_use=True)
    once = token(jti="1")
    assert tokens(once).subject == "ada"
    with pytest.raises(Denied) as caught:
        tokens(once)
    assert caught.value.code == "replayed_token"
    with pytest.raises(Denied, match="no id"):
        tokens(token())


def test_made_up_key_names_do_not_make_us_ask_for_ever(tokens_of: Callable[..., Tokens], provider: Provider) -> None:
    tokens = tokens_of()
    tokens(token())
    asked = provider.asked
    for number in range(20):
        with pytest.raises(Denied):
            tokens(jwt.encode(claims(), OTHER, algorithm="EdDSA", headers={"kid": f"no-{number}"}))
    assert provider.asked == asked


def test_the_last_keys_go_on_while_the_provider_is_away(tokens_of: Callable[..., Tokens], provider: Provider) -> None:
    tokens = tokens_of(refresh_s=1)
    tokens(token())
    provider.away = True
    tokens._fresh_until = tokens._asked = -1e9
    assert tokens(token()).subject == "ada"


class Answers(BaseHTTPRequestHandler):
    """An identity provider, as far as it concerns us."""

    def do_GET(self) -> None:
        issuer = f"http://127.0.0.1:{self.server.server_address[1]}"  # type: ignore[misc, str-bytes-safe]
        configuration = {"issuer": issuer, "jwks_uri": f"{issuer}/keys"}
        told = {"/.well-known/openid-configuration": configuration, "/keys": public_keys()}.get(self.path)
        self.send_response(200 if told else 404)
        self.end_headers()
        self.wfile.write(json.dumps(told).encode())

    def log_message(self, *_: object) -> None:
        pass


def test_a_real_provider_is_asked_over_http() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        issuer = f"http://127.0.0.1:{server.server_address[1]}"
        tokens = Tokens(JwtConfig(issuer=issuer, audience=AUDIENCE))
        assert tokens(token(iss=issuer)).subject == "ada"
        with pytest.raises(Denied) as caught:
            tokens(token(iss=issuer, exp=time.time() - 600))
        assert caught.value.code == "expired_token"
        server.shutdown()
    with pytest.raises(Denied, match="does not show"):
        Tokens(JwtConfig(issuer=issuer, audience=AUDIENCE))(token(iss=issuer))


@pytest.mark.parametrize("told", [{}, {"jwks_uri": "/etc/keys.json"}, {"jwks_uri": "file:///etc/keys.json"}])
def test_a_provider_cannot_make_us_read_our_own_files(told: dict[str, str]) -> None:
    asked: list[str] = []

    def answers(url: str) -> Any:
        asked.append(url)
        return {"issuer": ISSUER, **told} if "openid" in url else public_keys()

    with pytest.raises(Denied, match="does not show"):
        Tokens(JwtConfig(issuer=ISSUER, audience=AUDIENCE), answers)(token())
    assert [url for url in asked if "openid" not in url] == []


def test_an_issuer_without_an_audience_is_refused() -> None:
    with pytest.raises(ValueError, match="needs an audience"):
        JwtConfig(issuer=ISSUER)
