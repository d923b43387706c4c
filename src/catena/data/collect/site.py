"""Sites that Catena serves to itself: a documentation server on loopback, crawled like any other web site.

A site of another package registers by an entry point `site:<name>` in the group `catena.plugins`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from catena.core.registry import Registry


class Site(Protocol):
    """A server that the crawl starts and stops. Its port changes, so rows carry `public` in place of its address."""

    public: str
    """What stands for the server in rows, a scheme with its colon: `pydoc:` makes `pydoc:/json.html`."""
    start: tuple[str, ...]
    """Paths where a crawl begins unless the config says otherwise."""
    concurrency: int
    """How many requests the server answers at once."""

    def serve(self, workdir: Path) -> AbstractContextManager[str]:
        """Run the server for the length of a block; yields its address, without a slash at the end."""
        ...

    def paths(self) -> frozenset[str] | None:
        """Return the only paths that may be asked, or None for no such limit."""
        ...

    def problem(self, body: bytes) -> str | None:
        """Return what is wrong with a page that came with status 200, or None."""
        ...


SITES = Registry("site", {"pydoc": "catena.data.collect.pydoc:PydocSite"})
