"""Run huggingface_hub's own tests against `catena hub serve`: which pass, which fail, and why.

    git clone https://github.com/huggingface/huggingface_hub /tmp/huggingface_hub
    python benchmarks/hub_upstream.py /tmp/huggingface_hub tests/test_snapshot_download.py

The tests are not ours and are not copied: they run from a scratch copy of the checkout, with the library of the same
commit, and with an address and a key of our server where they name their own. Needs pytest-mock.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

START = "from catena.cli.main import main; main()"


@contextlib.contextmanager
def hub(folder: Path):
    """Start a hub with keys, where what is not private is read without; gives its address and three keys."""
    workspace = str(folder / ".catena")

    def catena(*words: str) -> str:
        command = [sys.executable, "-c", START, *words, "-w", workspace, "--json"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    catena("init")
    keys = [json.loads(catena("keys", "create", name, "--role", "admin"))["key"] for name in ("upstream", "other")]
    words = ["hub", "serve", "--port", "0", "--auth", "--public", "--json", "-w", workspace]
    process = subprocess.Popen([sys.executable, "-c", START, *words], stdout=subprocess.PIPE, text=True)
    try:
        text = ""
        while not text.endswith("}\n"):
            text += process.stdout.readline()
        yield json.loads(text)["url"], keys
    finally:
        process.terminate()
        process.wait(30)


def point_at(tests: Path, url: str, keys: list[str]) -> None:
    """Let the tests' constants name our server."""
    constants = tests / "testing_constants.py"
    text = constants.read_text()
    for name, value in (("ENDPOINT_STAGING", url), ("USER", "upstream"), ("TOKEN", keys[0]), ("OTHER_TOKEN", keys[1])):
        text = re.sub(rf"^{name} = .*$", f'{name} = "{value}"', text, flags=re.MULTILINE)
    constants.write_text(text)


def main() -> None:
    """Run and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("tests", nargs="*", default=["tests/test_snapshot_download.py"])
    parser.add_argument("-k", default="", help="Only tests like this (pytest's -k).")
    parser.add_argument("--out", type=Path, help="Write the counts as JSON.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, hub(Path(scratch)) as (url, keys):
        copy = Path(scratch) / "upstream"
        for part in ("src", "tests"):
            shutil.copytree(options.checkout / part, copy / part)
        (copy / "pytest.ini").write_text(
            "[pytest]\nmarkers =\n    xet\n    no_xet\n    staging\n    production\n    vcr\n"
        )
        point_at(copy / "tests", url, keys)
        paths = os.pathsep.join([str(copy / "src"), *filter(None, [os.environ.get("PYTHONPATH", "")])])
        environment = {**os.environ, "HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": paths}
        command = [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=line", "-p", "no:cacheprovider", *options.tests]
        command += ["-k", options.k] if options.k else []
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    print(done.stdout[-6000:], done.stderr[-2000:])
    counts = {
        word: int(number)
        for number, word in re.findall(r"(\d+) (passed|failed|skipped|errors?|deselected)", done.stdout)
    }
    commit = subprocess.run(
        ["git", "-C", str(options.checkout), "log", "-1", "--format=%H"], capture_output=True, text=True
    )
    print(json.dumps(counts))
    if options.out is not None:
        failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
        record = {"commit": commit.stdout.strip(), "tests": options.tests, "counts": counts, "failed": failed}
        options.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
