"""The documentation server of Python's standard library (`pydoc`) as a site: real HTML, on every machine, offline.

Showing a page imports the module, and some modules act on import (open a browser, print, need a display). So pages are
asked from a list of modules only, `pydoc_modules.txt`: each was imported on Linux under Python 3.11, 3.12 and 3.13
with an audit hook that saw no process, no connection and no file written. A module that a version lacks is not linked.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from catena.core.errors import EnvironmentProblem
from catena.data.collect.child import last_lines, running

READY = re.compile(r"Server ready at (http://[^\s/]+)/")
STARTS_WITHIN_S = 30.0
# pydoc answers 200 with a page titled so when it cannot import, find or draw what was asked.
ERROR_PAGE = re.compile(rb"<title>\s*Pydoc: Error\b")
INDEX_PAGES = ("/index.html", "/topics.html", "/keywords.html")
# A name in the list that begins so is a language topic: `topic?key=FUNCTIONS`.
TOPIC = "topic:"


class PydocSite:
    """pydoc's own web server, on a free port of loopback."""

    public = "pydoc:"
    start = INDEX_PAGES
    concurrency = 1  # pydoc answers one request after the other

    @contextmanager
    def serve(self, workdir: Path) -> Iterator[str]:
        """Run the server for the length of a block; yields its address."""
        log = workdir / "pydoc.log"
        log.unlink(missing_ok=True)
        # -S leaves out installed packages, -P and the root folder leave out whatever lies where we were started.
        server = Path(__file__).with_name("pydoc_server.py")
        command = [sys.executable, "-S", "-s", "-P", "-u", "-W", "ignore", str(server)]
        # Pages show values such as os.environ and sets: the same on every machine, and nobody's secrets.
        env = {"PATH": os.defpath, "LANG": "C.UTF-8", "HOME": "/", "PYTHONHASHSEED": "0"}
        with running(command, log, env=env, cwd=Path("/")) as child:
            deadline = time.monotonic() + STARTS_WITHIN_S
            while (ready := READY.search(log.read_text(errors="replace"))) is None:
                if child.poll() is not None or time.monotonic() > deadline:
                    raise EnvironmentProblem(
                        f"the documentation server did not start: {last_lines(log) or 'it said nothing'}",
                        hint="Try: python -m pydoc -n 127.0.0.1 -p 0",
                    )
                time.sleep(0.02)
            yield ready[1]

    def paths(self) -> frozenset[str]:
        """Return the pages of the index, of the listed modules, and of the language topics."""
        return frozenset({*INDEX_PAGES, *(page_of(name) for name in listed_names())})

    def problem(self, body: bytes) -> str | None:
        """Return `error_page` for the page that pydoc sends with status 200 when something went wrong."""
        return "error_page" if ERROR_PAGE.search(body[:2000]) else None


def listed_names() -> list[str]:
    """Return the entries of `pydoc_modules.txt`: module names, and language topics as `topic:NAME`."""
    text = resources.files("catena.data.collect").joinpath("pydoc_modules.txt").read_text(encoding="utf-8")
    return [line for line in (raw.strip() for raw in text.splitlines()) if line and not line.startswith("#")]


def page_of(name: str) -> str:
    """Return the path of an entry's page."""
    return f"/topic?key={name.removeprefix(TOPIC)}" if name.startswith(TOPIC) else f"/{name}.html"
