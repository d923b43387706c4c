"""A conversation with a stored model over HTTP: the same way in as everybody else's, by the official client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from catena.core.errors import RemoteError, UsageError
from catena.core.generate import GENERATORS
from catena.core.registry import require
from catena.core.types import ModelVersion
from catena.serve.app import build_app
from catena.serve.server import background

if TYPE_CHECKING:
    from catena.hub.lineage import AnswerSource
    from catena.hub.store import Store


@dataclass(frozen=True, slots=True)
class Answer:
    """A question, what the model said, the pages it learnt that from, and what it should have said if that is known."""

    question: str
    answer: str
    sources: list[AnswerSource] = field(default_factory=list)
    expected: str | None = None
    as_expected: bool | None = None

    def learnt_from(self) -> str:
        """Return the pages on one line; how near they are, where the words are not the same."""
        if not self.sources:
            return "learnt from: no training sample is near"
        shown = [
            source.page + ("" if source.similarity == 1.0 else f" ({source.similarity:.0%} alike)")
            for source in self.sources
        ]
        return f"learnt from: {', '.join(shown)}"

    def judged(self) -> str:
        """Return whether the answer is the expected one, on one line; nothing where none is known."""
        if self.expected is None:
            return ""
        return "as expected" if self.as_expected else f"expected: {' '.join(self.expected.split())}"


@contextmanager
def opened_server(store: Store, model: ModelVersion, name: str) -> Iterator[str]:
    """Serve a model on loopback while the block runs; gives the URL. `gc` leaves the workspace alone meanwhile."""
    with store.lock("gc", shared=True):
        generator = GENERATORS.load("native")(store.checkout(model))
        try:
            with background(build_app({name: generator}, fingerprints={name: model.digest})) as url:
                yield url
        finally:
            generator.close()


def connect(url: str, *, loopback: bool) -> Any:
    """Return the official client for a server; proxies of the environment are for other machines than this one."""
    openai = require("openai")
    http_client = openai.DefaultHttpxClient(trust_env=False) if loopback else None
    base = url.rstrip("/").removesuffix("/v1") + "/v1"
    return openai.OpenAI(base_url=base, api_key="not-needed", max_retries=0, http_client=http_client)


def ask(client: Any, model: str, question: str, *, max_tokens: int | None, show: Callable[[str], None]) -> str:
    """Ask one question, hand the pieces of the answer to `show` as they come, and return it whole.

    Raises `UsageError` for what the server refuses and `RemoteError` where it is away or fails.
    """
    openai = require("openai")
    messages = [{"role": "user", "content": question}]
    pieces: list[str] = []
    try:
        with client.chat.completions.create(
            model=model, messages=messages, max_tokens=max_tokens, temperature=0, stream=True
        ) as stream:
            for chunk in stream:
                piece = (chunk.choices[0].delta.content if chunk.choices else None) or ""
                pieces.append(piece)
                show(piece)
    except openai.APIStatusError as error:
        kind = UsageError if error.status_code < 500 else RemoteError
        raise kind(f"the server refused: {error.message}") from error
    except openai.APIConnectionError as error:
        raise RemoteError(f"no server answers at {client.base_url}", hint="Is it running? `catena serve`.") from error
    except openai.APIError as error:
        raise RemoteError(f"the server failed while it answered: {error.message}") from error
    return "".join(pieces)
