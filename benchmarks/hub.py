"""The hub beside nginx with the same files: downloads, uploads, small files; memory; lists of many repositories.

    python benchmarks/hub.py [--gib 1] [--rounds 3] [--models 1000] [--huge 3]

A file of several GB goes up and down by the official client, while the hub's memory is watched (`--huge 0`: not).

Both serve from one process to one client (curl) on loopback, in turn, and medians are told. nginx sends with sendfile
and takes uploads by WebDAV, without looking at the bytes; the hub checks each upload's SHA-256 before it is there.
Needs nginx with the DAV module, and curl.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import insert

from catena.core.types import File, ModelVersion
from catena.hub import schema
from catena.hub.index import now
from catena.hub.store import init_store

RESULT = Path(__file__).parent / "results" / "hub.json"
START = "from catena.cli.main import main; main()"
CONFIG = """
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    client_max_body_size 0;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        root {folder}/root;
        location / {{ dav_methods PUT; }}
    }}
}}
"""
SMALL, SMALL_BYTES = 300, 16 << 10


@contextmanager
def nginx(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Run nginx over `folder`/root."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "nginx.conf").write_text(CONFIG.format(folder=folder, port=port))
    user = ["-g", "daemon off; user root;"] if os.getuid() == 0 else ["-g", "daemon off;"]
    command = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), *user]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        _wait(port)
        yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def hub(workspace: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Run the hub over a workspace."""
    words = ["hub", "serve", "--port", "0", "--json", "-w", str(workspace)]
    process = subprocess.Popen([sys.executable, "-c", START, *words], stdout=subprocess.PIPE, text=True)
    try:
        text = ""
        while not text.endswith("}\n"):
            text += process.stdout.readline()  # type: ignore[union-attr]
        yield json.loads(text)["url"], psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)


def _wait(port: int) -> None:
    for _ in range(200):
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit("nginx did not start")


def curl(*words: str) -> float:
    """Return the seconds that a transfer took, by curl's own clock."""
    command = ["curl", "-sS", "-f", "--noproxy", "*", "-o", "/dev/null", "-w", "%{time_total}", *words]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def ask(url: str, method: str, path: str, body: Any = None) -> Any:
    """Ask the hub for JSON."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    connection.request(
        method, path, json.dumps(body) if body is not None else None, {"Content-Type": "application/json"}
    )
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    assert answer.status < 300, text
    return json.loads(text) if text else None


def upload_address(url: str, digest: str, size: int) -> str:
    """Ask where a large file may be uploaded."""
    body = {"operation": "upload", "transfers": ["basic"], "objects": [{"oid": digest, "size": size}]}
    found = ask(url, "POST", "/bench/large.git/info/lfs/objects/batch", body)["objects"][0]
    return found["actions"]["upload"]["href"]


def commit(url: str, *lines: Any) -> None:
    """Commit to the repository."""
    text = "\n".join(json.dumps(line) for line in ({"key": "header", "value": {"summary": "bench"}}, *lines))
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=600)
    connection.request("POST", "/api/models/bench/large/commit/main", text, {"Content-Type": "application/x-ndjson"})
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    answer.read()
    connection.close()


def small_files(url: str, path: Callable[[int], str]) -> float:
    """Return how many small files a second one connection fetches."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    began = time.perf_counter()
    for number in range(SMALL):
        connection.request("GET", path(number))
        assert len(connection.getresponse().read()) == SMALL_BYTES
    connection.close()
    return SMALL / (time.perf_counter() - began)


def transfers(gib: float, rounds: int) -> dict[str, Any]:
    """Measure large and small files on both."""
    size = max(1, round(gib * 1024)) << 20
    told: dict[str, dict[str, list[float]]] = {name: {"hub": [], "nginx": []} for name in ("down", "up", "small")}
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_FOLDER")) as scratch, ExitStack() as stack:
        folder = Path(scratch)
        (folder / "root" / "small").mkdir(parents=True)
        init_store(folder / ".catena").close()
        ours, process = stack.enter_context(hub(folder / ".catena"))
        theirs, _ = stack.enter_context(nginx(folder))
        ask(ours, "POST", "/api/repos/create", {"name": "large", "organization": "bench"})
        import base64

        lines = []
        for number in range(SMALL):
            data = os.urandom(SMALL_BYTES)
            (folder / "root" / "small" / str(number)).write_bytes(data)
            value = {"content": base64.b64encode(data).decode(), "path": f"small/{number}", "encoding": "base64"}
            lines.append({"key": "file", "value": value})
        commit(ours, *lines)
        before, peak = process.memory_info().rss, 0
        for number in range(rounds):
            source = folder / "source.bin"
            state = hashlib.sha256()
            with source.open("wb") as stream:
                for _ in range(size >> 20):
                    block = os.urandom(1 << 20)
                    state.update(block)
                    stream.write(block)
            digest = state.hexdigest()
            told["up"]["hub"].append(size / curl("-T", str(source), upload_address(ours, digest, size)))
            told["up"]["nginx"].append(size / curl("-T", str(source), f"{theirs}/large-{number}.bin"))
            value = {"path": "large.bin", "algo": "sha256", "oid": digest, "size": size}
            commit(ours, {"key": "lfsFile", "value": value})
            for _ in range(2):  # the first of each is not told: it warms the page cache
                down = size / curl(f"{ours}/bench/large/resolve/main/large.bin")
                beside = size / curl(f"{theirs}/large-{number}.bin")
            told["down"]["hub"].append(down)
            told["down"]["nginx"].append(beside)
            told["small"]["hub"].append(small_files(ours, lambda n: f"/bench/large/resolve/main/small/{n}"))
            told["small"]["nginx"].append(small_files(theirs, lambda n: f"/small/{n}"))
            peak = max(peak, process.memory_info().rss)
            (folder / "root" / f"large-{number}.bin").unlink()
        version = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr.strip()
    result: dict[str, Any] = {"nginx": version, "bytes": size, "rss_before": before, "rss_peak": peak}
    for name, unit in (("down", "bytes/s"), ("up", "bytes/s"), ("small", "files/s")):
        middle = {side: statistics.median(values) for side, values in told[name].items()}
        result[name] = {**middle, "unit": unit, "ratio": middle["hub"] / middle["nginx"], "rounds": told[name]}
    return result


def huge(gib: float) -> dict[str, Any]:
    """Let one file of several GB go up and down by the official client; tell the memory of the hub, at its most."""
    from huggingface_hub import HfApi, constants

    constants.HF_HUB_DISABLE_XET = True  # as that variable of the environment does
    size = round(gib * 1024) << 20
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_FOLDER")) as scratch:
        folder = Path(scratch)
        if shutil.disk_usage(folder).free < 4 * size:
            raise SystemExit(f"{folder} has no room for three copies of {gib:g} GiB")
        source = folder / "huge.bin"
        with source.open("wb") as stream:  # a random MiB in every 64: the rest is a hole, and all of it is sent
            for start in range(0, size, 64 << 20):
                stream.seek(start)
                stream.write(os.urandom(1 << 20))
            stream.truncate(size)
        init_store(folder / ".catena").close()
        with hub(folder / ".catena") as (url, process), Watch(process) as watch:
            api = HfApi(endpoint=url, token=False)
            api.create_repo("bench/huge")
            watch.reset()
            began = time.perf_counter()
            api.upload_file(path_or_fileobj=source, path_in_repo="huge.bin", repo_id="bench/huge")
            up, up_peak = time.perf_counter() - began, watch.reset()
            began = time.perf_counter()
            found = api.hf_hub_download("bench/huge", "huge.bin", local_dir=folder / "down")
            down, down_peak = time.perf_counter() - began, watch.reset()
            same = subprocess.run(["cmp", str(source), found], check=False).returncode == 0
    told = {"bytes": size, "same": same, "rss_before": watch.before, "rss_peak_up": up_peak, "rss_peak_down": down_peak}
    return {**told, "up_bytes_per_s": size / up, "down_bytes_per_s": size / down}


class Watch(threading.Thread):
    """Looks at a process's memory twenty times a second."""

    def __init__(self, process: psutil.Process) -> None:
        super().__init__(daemon=True)
        self._process, self._peak, self._over = process, 0, threading.Event()
        self.before = process.memory_info().rss

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        """Look until it is over."""
        while not self._over.wait(0.05):
            self._peak = max(self._peak, self._process.memory_info().rss)

    def reset(self) -> int:
        """Return the most since the last time."""
        peak, self._peak = max(self._peak, self._process.memory_info().rss), 0
        return peak


def lists(count: int) -> dict[str, Any]:
    """Measure lists and searches over so many models: the first after a change, and the others."""
    with tempfile.TemporaryDirectory() as scratch:
        store = init_store(Path(scratch) / ".catena")
        models, named = [], []
        for number in range(count):
            file = File(path="model.safetensors", size=1000 + number, sha256=f"{number:064x}")
            facts = {"architecture": "LlamaForCausalLM", "parameters": number * 1000, "license": "Apache-2.0"}
            form = "quantized" if number % 5 == 0 else "full"
            draft = ModelVersion(form=form, files=(file,), **facts)
            model = draft.model_copy(update={"digest": draft.compute_digest(), "created": now()})
            row = {"digest": model.digest, "kind": "model", "created": now(), "body": model.model_dump_json()}
            models.append(row)
            name = f"team-{number % 20}/model-{number}"
            named.append({"name": name, "version": 1, "digest": model.digest, "created": now()})
        with store.index.engine.begin() as connection:
            connection.execute(insert(schema.artifacts), models)
            connection.execute(insert(schema.names), named)
        times: dict[str, list[float]] = {"first": [], "list": [], "search": []}
        with hub(store.root) as (url, _):
            for number in range(20):
                store.tag(f"team-1/model-{1 + 20 * number % count}", f"t{number}")  # a change: the list is read again
                for name, path in (
                    ("first", "/api/models?limit=1000"),
                    ("list", "/api/models?limit=1000"),
                    ("search", f"/api/models?search=model-{number}%20quantized"),
                ):
                    began = time.perf_counter()
                    ask(url, "GET", path)
                    times[name].append((time.perf_counter() - began) * 1000)
        store.close()
    told = {name: {"median_ms": statistics.median(all_), "max_ms": max(all_)} for name, all_ in times.items()}
    return {"models": count, **told}


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Measure lists and transfers."""
    return {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()},
        "lists": lists(options.models),
        "transfers": transfers(options.gib, options.rounds),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--huge", type=float, default=3.0, help="GiB of one file by the official client")
    parser.add_argument("--only-huge", action="store_true", help="leave the other figures as they were measured before")
    options = parser.parse_args()
    found: dict[str, Any] = json.loads(RESULT.read_text()) if options.only_huge else measured(options)
    if options.huge:
        found["huge"] = one = huge(options.huge)
        rss = [one[name] / 1e6 for name in ("rss_before", "rss_peak_up", "rss_peak_down")]
        print(
            f"{options.huge:g} GiB by the client: up {one['up_bytes_per_s'] / 1e6:,.0f} MB/s, down "
            f"{one['down_bytes_per_s'] / 1e6:,.0f}; memory {rss[0]:,.0f} MB, up {rss[1]:,.0f}, down {rss[2]:,.0f}"
        )
        assert one["same"]
    for name in ("down", "up", "small"):
        one = found["transfers"][name]
        scale, unit = (1e6, "MB/s") if one["unit"] == "bytes/s" else (1, "files/s")
        print(f"{name:6} hub {one['hub'] / scale:,.0f} {unit}, nginx {one['nginx'] / scale:,.0f}: {one['ratio']:.2f}")
    rss = found["transfers"]["rss_before"] / 1e6, found["transfers"]["rss_peak"] / 1e6
    print(f"memory of the hub {rss[0]:,.0f} MB before, {rss[1]:,.0f} MB at most after {options.gib:g} GiB files")
    for name, one in found["lists"].items():
        if isinstance(one, dict):
            print(f"{options.models} models, {name}: {one['median_ms']:.1f} ms, at most {one['max_ms']:.1f}")
    RESULT.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
