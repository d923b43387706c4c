"""The HTTP client of the connectors: one request after the other, polite, bounded, and with secrets kept out of sight.

urllib3, because a stage is synchronous and needs what urllib3 has and `requests` hides: bodies read in pieces with a
limit on what they unpack to, and redirects seen one by one, so that a secret never goes to another host.
"""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO, Literal
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

from pydantic import Field, model_validator

from catena import __version__
from catena.core.config import Config
from catena.core.errors import ConfigError, RemoteError

if TYPE_CHECKING:
    import urllib3

BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
REDIRECTS = frozenset({301, 302, 303, 307, 308})
MAX_REDIRECTS = 5
MAX_BACKOFF_S = 60.0
PIECE = 1 << 16


class HttpConfig(Config):
    """How patiently and how gently a server is asked."""

    timeout_s: float = Field(default=30.0, gt=0)
    """Longest silence of the server, in seconds."""
    deadline_s: float = Field(default=600.0, gt=0)
    """Longest time for one answer, body included, in seconds."""
    retries: int = Field(default=4, ge=0, le=20)
    """How often to ask again after a lost connection, a timeout, or status 408, 425, 429, 500, 502, 503, 504."""
    backoff_s: float = Field(default=1.0, ge=0)
    """Wait before the first retry, in seconds; doubled each time, a minute at most."""
    max_wait_s: float = Field(default=300.0, ge=0)
    """Longest wait that a server's Retry-After may ask for, in seconds; a longer one ends the run."""
    requests_per_s: float = Field(default=5.0, gt=0)
    """Most requests in a second."""
    max_bytes: int = Field(default=50_000_000, ge=1)
    """Largest body, decompressed; a larger one is cut off on the way."""


class AuthConfig(Config):
    """Who asks. The secret itself stands in an environment variable and is stored nowhere."""

    kind: Literal["none", "bearer", "basic", "header", "query"] = "none"
    """`bearer` and `basic` as in RFC 6750 and 7617; `header` and `query` send the secret under `name`."""
    secret_env: str = ""
    """Environment variable that holds the token, the password or the key."""
    user: str = ""
    """User name for `basic`."""
    name: str = ""
    """Header or query parameter for `header` and `query`, for example X-Api-Key."""

    @model_validator(mode="after")
    def _complete(self) -> AuthConfig:
        if self.kind != "none" and not self.secret_env:
            raise ValueError(f"auth {self.kind!r} needs `secret_env`, the environment variable with the secret")
        if self.kind in ("header", "query") and not self.name:
            raise ValueError(f"auth {self.kind!r} needs `name`, the header or query parameter")
        return self


class HttpError(RemoteError):
    """A server refused, failed, or was not there. `status` is 0 where no answer came."""

    def __init__(self, message: str, *, status: int = 0, reason: str = "http_error", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status, self.reason = status, reason


class TooLarge(HttpError):
    """A body is larger than `max_bytes`."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of a server."""

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body as JSON; raises `HttpError` when it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise HttpError(f"{self.url} did not answer with JSON: {error}", status=self.status) from error


def secret_of(name: str) -> str:
    """Return what an environment variable holds; raises `ConfigError` when it is not set."""
    value = os.environ.get(name, "")
    if not value:
        raise ConfigError(f"the environment variable {name} is not set", hint=f"Set it: export {name}=...")
    return value


def plain_url(url: str) -> str:
    """Return an http(s) address as it is; raises `ValueError` for another scheme or one with a password in it."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is not an http or https address")
    if parts.username or parts.password:
        raise ValueError("an address must not hold a user or password; use `auth`")
    return url


def origin(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return parts.scheme, (parts.hostname or "").lower(), port


class Client:
    """Asks servers. `sleep` is what waiting is done with."""

    def __init__(
        self,
        http: HttpConfig,
        auth: AuthConfig | None = None,
        *,
        home: str = "",
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._http, self._auth, self._sleep = http, auth or AuthConfig(), sleep
        self._home = origin(home) if home else None
        self._next = 0.0
        # Asked for at once: a run must not fail for want of a variable after an hour.
        self._secret = secret_of(self._auth.secret_env) if self._auth.kind != "none" else ""

    def get(
        self,
        url: str,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        allow: frozenset[int] = frozenset(),
        busy: Callable[[Answer], bool] = lambda answer: False,
    ) -> Answer:
        """Ask for an address and return the answer with its body, after retries.

        Statuses 200 to 299 and those of `allow` come back; any other, and a server that is away, raises `HttpError`.
        `busy` tells of an answer that looks well and means "ask again later".
        """
        full = with_params(url, params or {})
        for attempt in range(self._http.retries + 1):
            last = attempt == self._http.retries
            try:
                answer = self._ask(full, dict(headers or {}))
            except HttpError as error:
                if last or error.status or isinstance(error, TooLarge):
                    raise
                self._sleep(self._pause(attempt))
                continue
            asked_to_wait = answer.status in BUSY or busy(answer)
            if not asked_to_wait and (200 <= answer.status < 300 or answer.status in allow):
                return answer
            if last or not asked_to_wait:
                raise self._refused(answer)
            self._sleep(self._wait_of(answer, attempt))
        raise AssertionError("the last attempt returns or raises")

    def download(self, url: str, target: BinaryIO) -> None:
        """Write the body of an address to a file, from the start at every attempt; raises `HttpError`."""
        for attempt in range(self._http.retries + 1):
            target.seek(0)
            target.truncate()
            try:
                answer = self._ask(url, {}, target)
                if 200 <= answer.status < 300:
                    return
                if attempt == self._http.retries or answer.status not in BUSY:
                    raise self._refused(answer)
                self._sleep(self._wait_of(answer, attempt))
            except HttpError as error:
                if attempt == self._http.retries or error.status or isinstance(error, TooLarge):
                    raise
                self._sleep(self._pause(attempt))

    def _ask(self, url: str, headers: dict[str, str], target: BinaryIO | None = None) -> Answer:
        """Ask once, following redirects."""
        for _ in range(MAX_REDIRECTS + 1):
            self._keep_rate()
            answer = self._request(url, headers, target)
            if answer.status not in REDIRECTS or "location" not in answer.headers:
                return answer
            url = urljoin(url, answer.headers["location"])
            if urlsplit(url).scheme not in ("http", "https"):
                break
        raise HttpError(f"{shown(url)} leads in a circle of redirects, or nowhere", status=310)

    def _request(self, url: str, headers: dict[str, str], target: BinaryIO | None) -> Answer:
        import urllib3

        sent = {"User-Agent": f"catena/{__version__}", "Accept-Encoding": "gzip, deflate", **headers}
        real, sent = self._signed(url, sent)
        deadline = time.monotonic() + self._http.deadline_s
        try:
            response = self._pool(url).request(
                "GET",
                real,
                headers=sent,
                redirect=False,
                retries=False,
                preload_content=False,
                timeout=urllib3.Timeout(self._http.timeout_s),
            )
            with _released(response):
                answer = Answer(url, response.status, {k.lower(): v for k, v in response.headers.items()}, b"")
                body = bytearray()
                keep = target if target is not None and 200 <= answer.status < 300 else None
                size = 0
                for piece in response.stream(PIECE, decode_content=True):
                    size += len(piece)
                    self._check(url, size, deadline)
                    (keep.write(piece) if keep is not None else body.extend(piece))
                return replace(answer, body=bytes(body))
        except urllib3.exceptions.HTTPError as error:
            raise HttpError(
                f"{shown(url)} does not answer: {_why(error)}",
                reason="timeout" if _why(error).startswith("it is silent") else "unreachable",
                hint="See whether the address is right and the server runs; then run again: it goes on where it was.",
            ) from None  # what urllib3 says may hold the address with the secret

    def _check(self, url: str, size: int, deadline: float) -> None:
        if size > self._http.max_bytes:
            raise TooLarge(
                f"the body of {shown(url)} has more than {self._http.max_bytes} bytes",
                reason="too_large",
                hint="Raise `http.max_bytes`, or ask for smaller pages.",
            )
        if time.monotonic() > deadline:
            message = f"no whole answer from {shown(url)} within {self._http.deadline_s:g} s"
            raise HttpError(message, reason="timeout", hint="Raise `http.deadline_s`, or ask for smaller pages.")

    def _signed(self, url: str, headers: dict[str, str]) -> tuple[str, dict[str, str]]:
        """Return address and headers with the secret, for the server it belongs to and for no other."""
        if self._auth.kind == "none" or (self._home is not None and origin(url) != self._home):
            return url, headers
        match self._auth.kind:
            case "bearer":
                return url, {**headers, "Authorization": f"Bearer {self._secret}"}
            case "basic":
                pair = base64.b64encode(f"{self._auth.user}:{self._secret}".encode()).decode()
                return url, {**headers, "Authorization": f"Basic {pair}"}
            case "header":
                return url, {**headers, self._auth.name: self._secret}
            case _:
                return with_params(url, {self._auth.name: self._secret}), headers

    def without_secret(self, url: str) -> str:
        """Return an address that a server gave, without the secret that it may have echoed."""
        if self._auth.kind != "query":
            return url
        parts = urlsplit(url)
        kept = [(k, v) for k, v in parse_qsl(parts.query, keep_blank_values=True) if k != self._auth.name]
        return urlunsplit(parts._replace(query=urlencode(kept)))

    def _refused(self, answer: Answer) -> HttpError:
        hints = {
            401: "See whether `auth` is right and its environment variable holds a secret that is still good.",
            403: "See whether `auth` is right and may read this.",
            404: "See whether the address is right.",
            429: "Lower `http.requests_per_s`; then run again: it goes on where it was.",
        }
        hint = hints.get(answer.status, "Run again later: it goes on where it was.")
        return HttpError(f"{shown(answer.url)} answered with status {answer.status}", status=answer.status, hint=hint)

    def _wait_of(self, answer: Answer, attempt: int) -> float:
        asked = retry_after(answer.headers.get("retry-after", ""), datetime.now(UTC))
        if asked is not None and asked > self._http.max_wait_s:
            raise HttpError(
                f"{shown(answer.url)} asks to wait {asked:.0f} s, longer than `http.max_wait_s`",
                status=answer.status,
                hint="Run again then: it goes on where it was.",
            )
        return self._pause(attempt) if asked is None else asked

    def _pause(self, attempt: int) -> float:
        return min(self._http.backoff_s * 2.0**attempt, MAX_BACKOFF_S)

    def _keep_rate(self) -> None:
        now = time.monotonic()
        if now < self._next:
            self._sleep(self._next - now)
        self._next = max(now, self._next) + 1.0 / self._http.requests_per_s

    def _pool(self, url: str) -> urllib3.PoolManager:
        parts = urlsplit(url)
        proxy = getproxies().get(parts.scheme)
        # A proxy of the environment is for the world outside, never for a server on this machine.
        local = (parts.hostname or "") in ("127.0.0.1", "localhost", "::1")
        return self._direct if not proxy or local or proxy_bypass(parts.netloc) else self._proxied(proxy)

    @cached_property
    def _direct(self) -> urllib3.PoolManager:
        import urllib3

        return urllib3.PoolManager()

    def _proxied(self, proxy: str) -> urllib3.PoolManager:
        import urllib3

        return urllib3.ProxyManager(proxy)


@contextmanager
def _released(response: Any) -> Iterator[None]:
    """Give the connection back when the body was read to its end, and close it otherwise."""
    try:
        yield
    except BaseException:
        response.close()
        raise
    response.release_conn()


def _why(error: BaseException) -> str:
    """Return what went wrong without addresses: urllib3's messages quote them, queries included."""
    import urllib3

    match error:
        case urllib3.exceptions.NameResolutionError():
            return "the host has no address"
        case urllib3.exceptions.NewConnectionError():  # before the timeouts, of which it is one by inheritance
            return "the connection was refused"
        case urllib3.exceptions.TimeoutError():
            return "it is silent for too long"
        case urllib3.exceptions.DecodeError():
            return "the body is not what its Content-Encoding says"
        case urllib3.exceptions.SSLError():
            return "its certificate is not to be trusted"
        case urllib3.exceptions.ProtocolError():
            return "the connection was lost"
        case _:
            return type(error).__name__


def shown(url: str) -> str:
    """Return an address for a message: without its query, which may hold what is nobody's business."""
    return urlunsplit(urlsplit(url)._replace(query="", fragment=""))


def with_params(url: str, params: Mapping[str, Any]) -> str:
    """Return an address with these query parameters set, in place of those of the same name."""
    if not params:
        return url
    parts = urlsplit(url)
    kept = [(k, v) for k, v in parse_qsl(parts.query, keep_blank_values=True) if k not in params]
    return urlunsplit(parts._replace(query=urlencode([*kept, *params.items()])))


def retry_after(value: str, now: datetime) -> float | None:
    """Return the seconds that a Retry-After header (RFC 9110: seconds or a date) asks to wait, or None."""
    if value.strip().isdecimal():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max((moment - now).total_seconds(), 0.0)
