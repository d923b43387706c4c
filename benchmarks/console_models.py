"""The console on many models and samples: 500 models with two reports each, an evaluation of 100,000 samples.

    python benchmarks/console_models.py [--models 500] [--samples 100000] [--browser]

Told are seconds of a first look (nothing in memory) and milliseconds of what people do then: a search for models,
another page of samples, a search through all of them. With `--browser` also how long Chromium waits for each page of
a console that has just started, and for the same page again. (`benchmarks/console.py` does this for runs.)
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import insert

from catena.console.read.books import books
from catena.core.types import File, ModelVersion, Report, Score
from catena.hub import schema
from catena.hub.index import now
from catena.hub.store import Store, init_store
from catena.workspace import Workspace

RESULT = Path(__file__).parent / "results" / "console_models.json"


def put_models(store: Store, count: int, samples: int) -> Report:
    """Write the records of many models with two reports each, and one report with many samples; returns it."""
    artifacts, names = [], []
    at = now()
    for number in range(count):
        files = tuple(File(path=f"part-{part}.safetensors", size=10**6, sha256=f"{number:064x}") for part in range(8))
        model = ModelVersion(form="full", architecture="LlamaForCausalLM", parameters=10**7, files=files,
                             labels={"number": str(number)})  # fmt: skip
        model = model.model_copy(update={"digest": model.compute_digest(), "created": at})
        made: list[Any] = [model]
        for suite in ("answers", "perplexity"):
            scores = {f"{suite}/{split}": Score(value=number / count, low=0.0, high=1.0, n=800) for split in "abc"}
            report = Report(subject=model.digest, suite=suite, scores=scores, details={"data": "d"})
            made.append(report.model_copy(update={"digest": report.compute_digest(), "created": at}))
        for one in made:
            body = one.model_dump_json()
            artifacts.append({"digest": one.digest, "kind": one.kind, "created": at, "body": body})
        names.append({"name": f"team/model-{number:04d}", "version": 1, "digest": model.digest, "created": at})
    with store.index.engine.begin() as connection:
        connection.execute(insert(schema.artifacts), artifacts)
        connection.execute(insert(schema.names), names)
    with tempfile.TemporaryDirectory() as folder:
        with (Path(folder) / "samples.jsonl").open("wb") as stream:
            for number in range(samples):
                line = {"split": "test", "id": f"q{number}", "question": f"What is {number}?", "answer": "It is. " * 20}
                stream.write(orjson.dumps({**line, "reference": "It is.", "score": float(number % 3 > 0)}) + b"\n")
        report = store.put_report(model, "answers", {"accuracy/test": Score(value=0.66)}, folder=Path(folder))
        stored = store.index.add_artifact(report)
    assert isinstance(stored, Report)
    return stored


def seconds(work: Callable[[], Any]) -> float:
    """Return how long something takes, wall time."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def read_alone(store: Store, report: Report) -> dict[str, float]:
    """Measure what stands behind the pages, without a browser."""
    found = books(Workspace(store))
    told: dict[str, float] = {}
    told["models_first_s"] = seconds(lambda: found.models.find(limit=50))
    told["models_search_ms"] = 1000 * seconds(lambda: found.models.find(search="model-0042 llama", limit=50))
    told["boards_first_s"] = seconds(found.evaluation.boards)
    samples = found.evaluation.samples
    told["samples_first_s"] = seconds(lambda: samples.page(report, outcome="wrong", offset=30_000))
    told["samples_page_ms"] = 1000 * seconds(lambda: samples.page(report, outcome="right", offset=50_000))
    told["samples_search_ms"] = 1000 * seconds(lambda: samples.page(report, search="what is 99999"))
    return {name: round(value, 3) for name, value in told.items()}


@contextmanager
def console(root: Path) -> Iterator[str]:
    """Run `catena console` over a workspace; gives its address."""
    words = [sys.executable, "-m", "catena", "console", "--port", "0", "--json", "--workspace", str(root)]
    program = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=os.environ.copy())
    assert program.stdout is not None
    body = ""
    try:
        while '"url"' not in body or "}" not in body:
            body += program.stdout.readline()
        yield str(json.loads(body)["url"])
    finally:
        program.terminate()
        program.wait(timeout=60)


def in_browser(root: Path, report: Report) -> dict[str, float]:
    """Measure how long a browser waits: until what a page is about is drawn; the first time, and again."""
    from playwright.sync_api import sync_playwright

    pages = {
        "models": ("/models", "document.querySelectorAll('.c-table tbody tr').length > 0"),
        "boards": ("/evaluation", "document.querySelectorAll('.c-table tbody tr').length > 0"),
        "samples": (f"/evaluation/{report.digest}", "document.querySelectorAll('.c-sample').length > 0"),
    }
    told: dict[str, float] = {}
    with console(root) as url, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(url)  # scripts and styles are in the browser's cache from here on
        page.wait_for_selector("main.c-main")
        for name, (path, drawn) in pages.items():
            waits = []
            for _ in range(4):
                begun = time.perf_counter()
                page.goto(url + path)
                page.wait_for_function(drawn)
                waits.append(time.perf_counter() - begun)
            told[f"page_{name}_first_s"] = round(waits[0], 3)
            told[f"page_{name}_again_s"] = round(statistics.median(waits[1:]), 3)
        browser.close()
    return told


def main() -> None:
    """Make the workspace, measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=500)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--browser", action="store_true", help="open the pages in Chromium too")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / ".catena"
        store = init_store(root)
        report = put_models(store, asked.models, asked.samples)
        told = in_browser(root, report) if asked.browser else {}
        told |= read_alone(store, report)
        store.close()
    machine = {"system": platform.platform(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    counts = {"models": asked.models, "samples": asked.samples}
    result = {"machine": machine, **counts, "measured": told}
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
