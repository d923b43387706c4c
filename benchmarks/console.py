"""The console on large data: pages in Chromium, and what an update costs the server.

    python benchmarks/console.py [--rows N] [--points N] [--loads N] [--firsts N]

A workspace gets a dataset of 100,000 documents and a run with 1,000,000 metric points (four curves). A console runs
over it as a process of its own. Measured in Chromium, whose pages were opened before (a browser keeps styles and
scripts): the time until a page is drawn and connected, until all curves of the run stand there, and until the next 50
rows do. The first look at the run is measured in fresh consoles: where nobody has looked before, and where another
process has, which keeps what it read. Measured at the server, without a browser: a page of rows, a search over all
rows, and reading and thinning the curves again after 1,000 further points, which a live page does every second or two.
Beside it stands the plain way: all rows sent to the browser.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

import catena
from catena.console.read import datasets
from catena.console.read.curves import CurveBook
from catena.console.read.kept import beside
from catena.console.read.runs import RunBook
from catena.core.sample import Sample
from catena.core.types import Run
from catena.workspace import Workspace

RESULTS = Path(__file__).parent / "results" / "console.json"
CURVES = ("loss", "learning_rate", "grad_norm", "tokens_per_s")
GROUP, SHORT = "20260101-000000-abcdef", "20260101-000000-fedcba"
"""The run, and one with few points of the same curves, whose page brings the browser what such pages need."""
PANELS = "() => [...document.querySelectorAll('.c-last')].filter(one => one.innerText).length === %d"
MORE = 1000
ROWS_CHANGE = """async ([button, before]) => {
  const text = () => document.querySelector('.c-table tbody')?.innerText ?? '';
  const start = performance.now(), was = text();
  document.querySelectorAll('.c-iconbutton')[button].click();
  while (text() === was && performance.now() - start < 20000) await new Promise(requestAnimationFrame);
  return performance.now() - start;
}"""


def fill(workspace: Workspace, rows: int, points: int) -> None:
    """Make the dataset and the run."""
    with workspace.store.new_dataset("document", license="CC0-1.0") as writer:
        for number in range(rows):
            text = (
                f"Document {number}. "
                + f"The {number % 977}th river of town {number % 5003} flows on, 河流 {number}. " * 6
            )
            writer.add(Sample(f"r{number:07d}", {"text": text}, {"n": number}, source=f"s:{number % 1000}"))
        made = writer.commit()
    workspace.store.index.add_artifact(made)
    workspace.store.index.add_name("big", made.digest)
    put_run(workspace, GROUP, points // len(CURVES))
    put_run(workspace, SHORT, 100)


def put_run(workspace: Workspace, group: str, steps: int) -> None:
    """Make a run with so many points of each curve."""
    now = datetime.now(UTC)
    told: dict[str, Any] = {"step": "base", "stage": "train.pretrain", "recipe": "bench"}
    run = Run(id=group[-6:], group=group, key=group[-6:].ljust(64, "0"), machine={"pid": os.getpid()}, **told)
    workspace.store.index.put_run(run.model_copy(update={"status": "done", "started": now, "ended": now}))
    with (workspace.store.group_folder(group) / "events.jsonl").open("w") as stream:
        at = {"at": 1.0, "event": "start", "group": group, "recipe": "bench", "steps": ["base"]}
        stream.write(json.dumps(at) + "\n")
        stream.write(json.dumps({"at": 1.0, "event": "step", "step": "base", "status": "running"}) + "\n")
        write_points(stream, 0, steps)


def write_points(stream: Any, first: int, count: int) -> None:
    """Write points of every curve as a training does."""
    for step in range(first, first + count):
        for place, name in enumerate(CURVES):
            value = 2.0 + (step * 2654435761 % 1000) / 1000 / (1 + step / 5000) + place
            told = {"at": 1.0, "event": "metric", "step": "base", "name": name, "value": value, "at_step": step}
            stream.write(json.dumps(told) + "\n")


def timed(work: Callable[[], Any], times: int) -> list[float]:
    """Return how long something takes, in milliseconds, so many times."""
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        work()
        found.append(1000 * (time.perf_counter() - begin))
    return found


def told(values: list[float]) -> dict[str, float]:
    """Return median and slowest."""
    return {"median_ms": round(statistics.median(values), 1), "slowest_ms": round(max(values), 1)}


def on_the_server(workspace: Workspace, loads: int) -> dict[str, Any]:
    """Measure what pages and their updates ask of the workspace."""
    found: dict[str, Any] = {}
    pages = iter(range(0, 10_000, 50))
    found["rows_page"] = told(timed(lambda: datasets.rows(workspace, "big", "samples", (next(pages) * 10, 50)), loads))
    words = iter(range(10_000))
    found["search_all_rows"] = told(
        timed(lambda: datasets.rows(workspace, "big", "samples", (0, 50), f"river of town {next(words)} "), loads)
    )
    book = RunBook(workspace.store)
    curves = CurveBook(book)

    def look() -> None:
        run = book.one(GROUP)
        for name in CURVES:
            curves.drawn(run, run.steps[0], name)

    events = workspace.store.group_folder(GROUP) / "events.jsonl"
    beside(events).unlink(missing_ok=True)
    found["first_look_at_all_points"] = told(timed(look, 1))
    while not beside(events).exists():  # written while the page is drawn
        time.sleep(0.01)
    book = RunBook(workspace.store)
    curves = CurveBook(book)
    found["first_look_of_a_later_process"] = told(timed(look, 1))
    following, written = [], 10_000_000
    for _ in range(loads):
        with events.open("a") as stream:
            write_points(stream, written, MORE // len(CURVES))
        written += MORE // len(CURVES)
        following += timed(look, 1)
    found["update_after_1000_points"] = told(following)
    table = workspace.dataset("big").table()
    found["plain_way"] = {
        "all_rows_as_json_ms": round(timed(lambda: json.dumps(table.to_pylist()), 1)[0], 1),
        "all_rows_as_json_mb": round(len(json.dumps(table.to_pylist())) / 1e6, 1),
        "events_mb": round(events.stat().st_size / 1e6, 1),
    }
    return found


def in_the_browser(url: str, loads: int) -> dict[str, Any]:
    """Measure pages in Chromium."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    paths = {"overview": "/", "dataset": "/datasets/big@1", "run": page_of(GROUP)}
    found: dict[str, Any] = {}
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        window = browser.new_page(viewport={"width": 1360, "height": 860})
        window.set_default_timeout(120_000)

        def load(path: str) -> None:
            window.goto(url + path)
            window.wait_for_selector("main.c-main h1")
            window.wait_for_function("window.socket && window.socket.connected")

        def look(path: str) -> None:
            load(path)
            window.wait_for_function(PANELS % len(CURVES))

        for name, path in paths.items():
            first = timed(lambda path=path: load(path), 1)
            answers = timed(lambda path=path: urllib.request.urlopen(url + path).read(), loads)
            found[name] = {
                "first_ms": round(first[0], 1),
                "drawn_and_connected": told(timed(lambda path=path: load(path), loads)),
                "answer_of_the_server": told(answers),
            }
        found["run"]["all_curves"] = told(timed(lambda: look(paths["run"]), loads))
        load(paths["dataset"])
        found["next_50_rows"] = told([window.evaluate(ROWS_CHANGE, [1, ""]) for _ in range(loads)])
        browser.close()
    return found


def page_of(group: str) -> str:
    """Return the page of a run's curves."""
    return f"/runs/{group}?tab=curves"


def first_looks(root: Path, times: int) -> dict[str, Any]:
    """Measure the first look at the run, each in a console that has just started."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    events = root / "runs" / GROUP / "events.jsonl"
    found: dict[str, Any] = {}
    with sync_playwright() as driver:
        for name in ("nobody_looked_before", "another_process_did"):
            page, curves = [], []
            for _ in range(times):
                if name == "nobody_looked_before":
                    beside(events).unlink(missing_ok=True)
                assert beside(events).exists() == (name == "another_process_did")
                with console(root) as url:
                    browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
                    window = browser.new_page(viewport={"width": 1360, "height": 860})
                    window.set_default_timeout(120_000)
                    for path in ("/", page_of(SHORT)):
                        window.goto(url + path)
                        window.wait_for_selector("main.c-main h1")
                        window.wait_for_function("window.socket && window.socket.connected")
                    window.wait_for_function(PANELS % len(CURVES))
                    begin = time.perf_counter()
                    window.goto(url + page_of(GROUP))
                    window.wait_for_selector("main.c-main h1")
                    window.wait_for_function("window.socket && window.socket.connected")
                    page.append(1000 * (time.perf_counter() - begin))
                    window.wait_for_function(PANELS % len(CURVES))
                    curves.append(1000 * (time.perf_counter() - begin))
                    while not beside(events).exists():
                        time.sleep(0.01)
                    browser.close()
            found[name] = {"drawn_and_connected": told(page), "all_curves": told(curves)}
    return found


@contextmanager
def console(root: Path) -> Iterator[str]:
    """Run a console over a workspace; gives its address."""
    words = [sys.executable, "-m", "catena", "console", "--port", "0", "--json", "--workspace", str(root)]
    program = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert program.stdout is not None
        body = ""
        while not body.rstrip().endswith("}"):
            body += program.stdout.readline()
        yield json.loads(body)["url"]
    finally:
        program.terminate()
        program.wait()


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--loads", type=int, default=7)
    parser.add_argument("--firsts", type=int, default=3, help="consoles that are started for first looks")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="catena-console-") as folder:
        root = Path(folder) / ".catena"
        with catena.open(root) as workspace:
            fill(workspace, asked.rows, asked.points)
        firsts = first_looks(root, asked.firsts)
        with console(root) as url:
            browser = in_the_browser(url, asked.loads)
        with catena.open(root) as workspace:
            server = on_the_server(workspace, asked.loads)
    result = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "load_average": [round(one, 1) for one in os.getloadavg()],
        "rows": asked.rows,
        "points": asked.points,
        "server": server,
        "browser": browser,
        "first_look_at_the_run": firsts,
    }
    print(json.dumps(result, indent=2))
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
