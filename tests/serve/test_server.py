from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import httpx2 as httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from catena.core.errors import PortInUse, UsageError
from catena.serve.server import background, listen, url_of

# A server whose one route answers after a while; it prints its URL when it is ready, "asked" when a request is there,
# and "end" when it is done.
PROGRAM = """
import asyncio, sys
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from catena.serve.server import listen, serve

async def slow(request):
    print("asked", flush=True)
    await asyncio.sleep(float(sys.argv[1]))
    return PlainTextResponse("done")

serve(Starlette(routes=[Route("/", slow)]), listen(port=0), on_ready=lambda url: print(url, flush=True),
      grace_seconds=int(sys.argv[2]))
print("end", flush=True)
"""


def start(seconds: float, grace: int) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), str(seconds), str(grace)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def ask_in_thread(process: subprocess.Popen[str], url: str) -> tuple[threading.Thread, list[str]]:
    """Ask, and come back once the server is at work on it."""
    answers: list[str] = []

    def ask() -> None:
        try:
            answers.append(httpx.get(url, timeout=30).text)
        except httpx.HTTPError:
            answers.append("cut off")

    thread = threading.Thread(target=ask)
    thread.start()
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "asked"
    return thread, answers


def takes_connections(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), 5).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_requests_finish_and_takes_no_new_ones(sent: signal.Signals) -> None:
    process, url = start(1.5, 20)
    thread, answers = ask_in_thread(process, url)
    process.send_signal(sent)
    while takes_connections(url):
        time.sleep(0.02)
    thread.join()
    assert answers == ["done"]
    out, _ = process.communicate(timeout=20)
    assert out.strip() == "end"
    assert process.returncode == 0


def test_after_the_deadline_what_still_runs_is_cut_off() -> None:
    process, url = start(60, 1)
    thread, answers = ask_in_thread(process, url)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    thread.join()
    assert answers != ["done"]
    assert process.returncode == 0


def test_a_port_in_use_is_told_before_anything_is_loaded() -> None:
    first = listen(port=0)
    port = first.getsockname()[1]
    with pytest.raises(PortInUse, match=str(port)) as caught:
        listen(port=port)
    assert "--port 0" in caught.value.hint
    first.close()
    listen(port=port).close()


@pytest.mark.parametrize(("host", "port"), [("no.such.host.invalid", 0), ("127.0.0.1", 70000), ("127.0.0.1", -1)])
def test_a_place_that_cannot_be_is_refused(host: str, port: int) -> None:
    with pytest.raises(UsageError):
        listen(host, port)


def test_the_url_is_one_that_this_machine_reaches() -> None:
    with listen("0.0.0.0", 0) as everywhere:
        assert url_of(everywhere) == f"http://127.0.0.1:{everywhere.getsockname()[1]}"
    if socket.has_ipv6 and Path("/proc/net/if_inet6").exists():
        with listen("::1", 0) as six:
            assert url_of(six) == f"http://[::1]:{six.getsockname()[1]}"


def test_background_serves_in_the_block_and_not_after() -> None:
    async def hello(request: Request) -> PlainTextResponse:
        return PlainTextResponse("hello")

    with background(Starlette(routes=[Route("/", hello)])) as url:
        assert httpx.get(url).text == "hello"
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_serving_imports_no_torch() -> None:
    code = "import sys, catena.serve.app, catena.serve.server; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, env=os.environ).returncode == 0


def test_a_server_of_its_own_looks_for_garbage_only_among_what_came_later() -> None:
    code = """
import gc, os, signal, threading
from catena.serve.server import listen, serve

frozen = []
class Leaf: pass
def ready(url):
    frozen.append(gc.get_freeze_count())
    one = Leaf(); one.self = one; del one
    assert gc.collect() > 0, "what comes later is still collected"
    os.kill(os.getpid(), signal.SIGTERM)

async def app(scope, receive, send): raise AssertionError
before = gc.get_threshold()
serve(app, listen(port=0), on_ready=ready)
assert frozen[0] > 10_000 and gc.get_freeze_count() == 0 and gc.get_threshold() == before
print("good")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "good\n"), done.stderr
