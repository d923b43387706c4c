"""A small real workspace, the console over it as a process of its own, and a real browser that looks at it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import catena
from catena.govern.keys import Keys
from catena.sdk import Catena
from tests.console.gateways import gateway_over
from tests.needs import cannot_be_had

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
HERE = Path(__file__).parent
EVIL = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
"""A text that would change the title of a page that takes data for HTML."""
START_S = 120
NAMED = {"button", "checkbox", "combobox", "link", "radio", "searchbox", "slider", "spinbutton", "switch", "textbox"}
"""Roles of what a person acts on."""
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 860}


def wait(condition: Callable[[], bool], seconds: float = 90) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.1)


def texts(folder: Path) -> Path:
    """Write the documents of the small chain, English and Chinese, one of them hostile."""
    folder.mkdir()
    for number in range(24):
        body = f"Document {number} tells of {number * 7} rivers, of towns and of the people who live there. " * 3
        (folder / f"en-{number:02d}.txt").write_text(body + f"End of {number}.", encoding="utf-8")
    for number in range(6):
        body = f"第{number}篇文章讲述河流、城市和住在那里的人们，还有他们的第{number * 3}个故事。" * 3
        (folder / f"zh-{number}.txt").write_text(body, encoding="utf-8")
    (folder / "evil.txt").write_text(f"{EVIL} is what a hostile page may hold, and more words of it. " * 2)
    (folder / "short.txt").write_text("too short")
    shutil.copy(folder / "en-00.txt", folder / "en-copy.txt")
    return folder


@dataclass(frozen=True)
class Small:
    """The workspace's folder, and keys by role; `watcher` is a developer who may do no more than watch."""

    root: Path
    keys: dict[str, str]


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A workspace with datasets, a trained model in production, a report and keys of three roles."""
    place = tmp_path_factory.mktemp("console")
    texts(place / "texts")
    with catena.open(place / ".catena") as workspace:
        recipe = workspace.recipe(HERE / "small.yaml", [f"documents.paths=[{json.dumps(str(place / 'texts'))}]"])
        workspace.run(recipe)
        workspace.tag("small/model", "production")
        book = Keys(workspace.store.index)
        keys = {role: book.create(f"{role}-key", role)[0] for role in ("admin", "developer", "user")}
        keys["watcher"] = book.create("watcher-key", "developer", actions=("metrics", "models"))[0]
    return Small(place / ".catena", keys)


@contextmanager
def running(root: Path, *options: str) -> Iterator[str]:
    """Run `catena console` over a workspace; gives its address."""
    words = [sys.executable, "-m", "catena", "console", "--port", "0", "--json", "--workspace", str(root), *options]
    program = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ.copy())
    late = threading.Timer(START_S, program.kill)
    late.start()
    assert program.stdout is not None
    assert program.stderr is not None
    said: list[str] = []
    try:
        body, url = "", ""
        for line in program.stdout:
            body += line
            with suppress(ValueError):
                url = json.loads(body)["url"]
                break
        assert url, f"the console did not start: {body}{program.stderr.read()}"
        late.cancel()  # it has started: from here on it may run as long as the tests need
        yield url
    finally:
        late.cancel()
        program.terminate()
        said += program.communicate(timeout=60)[1:]
    assert "Traceback" not in said[0], said[0]


@pytest.fixture(scope="session")
def console(small: Small) -> Iterator[str]:
    """The address of a console over the small workspace, which has keys: people sign in."""
    with running(small.root) as url:
        yield url


@pytest.fixture(scope="session")
def gateway(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a governed gateway over the small workspace, with scripted replicas: slow to start, so one."""
    with gateway_over(small.root, tmp_path_factory.mktemp("deploy")) as url:
        yield url


@pytest.fixture
def admin(gateway: str, small: Small) -> Iterator[Catena]:
    """A client of the gateway that puts every release back in the end, also after a test that failed."""
    with Catena(gateway, key=small.keys["admin"]) as made:
        yield made
        for one in made.releases():
            made.rollback(one.model, reason="the test is over")


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    """Chromium. Where it is missing the tests skip, or fail when CI is set.

    Not for the session: while Playwright's own loop is there, no other test can run one.
    """
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        cannot_be_had("no Chromium here: sh scripts/system-packages")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield opened
        opened.close()


@dataclass(frozen=True)
class Visitor:
    """A browser window of one person, and what went wrong in it."""

    page: Any
    url: str
    errors: list[str]

    def go(self, path: str) -> Any:
        """Open a page and wait until it is drawn and connected; returns the answer."""
        answer = self.page.goto(self.url + path)
        self.page.wait_for_selector("main.c-main")
        self.page.wait_for_function("window.socket && window.socket.connected")
        return answer

    def drop(self) -> None:
        """Cut the connection to the server, and wait until there is a new one."""
        again = "new Promise(done => window.socket.once('connect', done))"
        self.page.evaluate(f"{{ window.again = {again}; window.socket.io.engine.close() }}")
        self.page.evaluate("window.again.then(() => true)")

    def press_in_dialog(self, name: str) -> None:
        """Press a button of the dialog, and wait until the dialog is gone: it fades, and its buttons with it."""
        dialog = self.page.locator(".c-dialog")
        dialog.get_by_role("button", name=name).click()
        dialog.wait_for(state="detached")

    @property
    def text(self) -> str:
        """What the page says."""
        return str(self.page.inner_text("main.c-main"))

    def too_wide(self) -> bool:
        """Tell whether the body scrolls sideways."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth > window.innerWidth"))

    def unfit(self) -> list[str]:
        """Return what keeps one from finding the way in a page by ear, when all of it has come."""
        self.page.wait_for_load_state("networkidle")
        late = time.monotonic() + 5
        while (found := self._unfit()) and time.monotonic() < late:
            time.sleep(0.1)
        return found

    def _unfit(self) -> list[str]:
        """Look into Chromium's own tree for screen readers."""
        counts = {tag: self.page.locator(tag).count() for tag in ("main, [role=main]", "h1")}
        found = [f"{count} of {tag}" for tag, count in counts.items() if count != 1]
        found += [] if self.page.get_attribute("html", "lang") in ("en", "en-US", "zh", "zh-CN") else ["no lang"]
        session = self.page.context.new_cdp_session(self.page)
        for node in session.send("Accessibility.getFullAXTree")["nodes"]:
            role = node.get("role", {}).get("value")
            if not node["ignored"] and role in NAMED and not node.get("name", {}).get("value", "").strip():
                inside = session.send("DOM.describeNode", {"backendNodeId": node["backendDOMNodeId"]})["node"]
                found.append(f"a {role} without a name: {inside['nodeName']} {inside.get('attributes')}")
        session.detach()
        return found


Visit = Callable[..., Visitor]


@pytest.fixture
def visit(browser: Any, console: str, small: Small) -> Iterator[Visit]:
    """Return a function that opens a window: `visit("admin", language="zh", size=PHONE, dark="dark")`."""
    opened = []

    def window(
        role: str = "admin", *, language: str = "en", size: Any = DESK, dark: str = "light", at: str = ""
    ) -> Visitor:
        context = browser.new_context(viewport=size, locale="en-US")
        context.set_default_timeout(90_000)
        opened.append(context)
        url = at or console
        context.add_cookies(
            [
                {"name": "catena_language", "value": language, "url": url},
                {"name": "catena_dark", "value": dark, "url": url},
            ]
        )
        page, errors = context.new_page(), []
        page.on("pageerror", lambda error: errors.append(str(error)))
        if role and not at:
            page.goto(f"{url}/login")
            page.fill("#key", small.keys[role])
            page.click("button[type=submit]")
            page.wait_for_selector("main.c-main")
        return Visitor(page, url, errors)

    yield window
    for context in opened:
        context.close()
