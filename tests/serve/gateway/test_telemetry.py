"""Traces, meters and GPUs: what is told outside."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from catena.serve.gateway import gpus, meters
from catena.serve.gateway.ask import read_ask
from catena.serve.gateway.call import Call
from catena.serve.gateway.config import TelemetryConfig
from catena.serve.gateway.identity import Identity
from catena.serve.gateway.traces import Traces

from .conftest import Start

PARENT = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"


def call() -> Call:
    return Call("r1", read_ask("/v1/chat/completions", orjson.dumps({"model": "m", "messages": []})), Identity())


def scope(parent: str = PARENT) -> Any:
    return {"type": "http", "headers": [(b"traceparent", parent.encode())]}


def test_a_request_is_a_span_under_the_callers_and_above_the_replicas() -> None:
    exporter = InMemorySpanExporter()
    traces, one = Traces(TelemetryConfig(), exporter), call()
    with traces.span(scope(), one):
        one.status, one.replica, one.attempts = 200, "m-1", 2
        one.answer += orjson.dumps({"usage": {"prompt_tokens": 5, "completion_tokens": 7}})
    with pytest.raises(RuntimeError), traces.span(scope(), call()):
        raise RuntimeError
    traces.close()
    span, failed = exporter.get_finished_spans()
    assert span.name == "chat m"
    assert span.parent is not None
    assert f"{span.parent.trace_id:032x}" == PARENT.split("-")[1]
    assert one.trace.split("-")[1:3] == [PARENT.split("-")[1], f"{span.context.span_id:016x}"]
    attributes = dict(span.attributes or {})
    assert attributes["gen_ai.request.model"] == "m"
    assert attributes["gen_ai.usage.output_tokens"] == 7
    assert attributes["catena.attempts"] == 2
    assert dict(failed.attributes or {})["error.type"] == "RuntimeError"


COUNT = {"prompt_tokens": 5, "completion_tokens": 3000}
WORDS = "word " * 3000
TOOL = {"parameters": {"properties": {"usage": {"type": "object"}}}}


def chunk(**fields: Any) -> bytes:
    return b"data: " + orjson.dumps(fields) + b"\n\n"


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(
    "pieces",
    [
        [orjson.dumps({"choices": [{"message": {"content": WORDS}}], "usage": COUNT})],
        [orjson.dumps({"choices": [{"message": {"content": WORDS * 80}}], "usage": COUNT})],
        [orjson.dumps({"usage": COUNT, "choices": [{"message": {"content": WORDS}}]})],
        [orjson.dumps({"output": [], "usage": COUNT, "tools": [TOOL], "metadata": {"usage": "mine"}})],
        [orjson.dumps({"output": [{"text": WORDS}], "usage": COUNT}, option=orjson.OPT_INDENT_2)],
        [chunk(choices=[], usage=None), chunk(choices=[], usage=COUNT), b"data: [DONE]\n\n"],
        [chunk(choices=[], usage=COUNT)[:30], chunk(choices=[], usage=COUNT)[30:], b"data: [DONE]\n\n"],
        [*[chunk(choices=[{"delta": {"content": WORDS}}])] * 100, chunk(usage=COUNT) + b"data: [DONE]\n\n"],
        [chunk(type="response.completed", response={"output": WORDS, "tools": [TOOL], "usage": COUNT, "user": None})],
    ],
)
def test_what_an_answer_says_of_its_tokens_is_read_however_long_it_is(pieces: list[bytes], keep: bool) -> None:
    one = call()
    one.keep, one.kind = keep, b"text/event-stream" if b"data:" in pieces[0] else b"application/json"
    for piece in pieces:
        one.took(piece)
    assert one.tokens() == (5, 3000)


def test_without_a_collector_the_callers_trace_goes_on_and_nonsense_does_not() -> None:
    traces, one = Traces(TelemetryConfig()), call()
    with traces.span(scope(), one):
        assert one.trace == PARENT
    with traces.span(scope("x\r\nevil: 1"), one):
        assert one.trace == ""


@contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """An HTTP server that takes what is sent; gives its URL, and the paths and bodies that came."""
    got: list[tuple[str, bytes]] = []

    class Taker(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Taker) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", got
        server.shutdown()


def test_spans_of_a_gateway_arrive_at_a_collector(start: Start) -> None:
    with collector() as (url, got):
        running = start(telemetry={"otlp": url, "gpus": False})
        assert running.chat("hi", headers={"traceparent": PARENT}).status_code == 200
        (entry,) = running.seen()
        running.stop()
    assert {path for path, _ in got} == {"/v1/traces"}
    told = [ExportTraceServiceRequest.FromString(body) for _, body in got]
    spans = [span for one in told for part in one.resource_spans for scope in part.scope_spans for span in scope.spans]
    (span,) = [one for one in spans if one.name == "chat m"]
    assert span.trace_id.hex() == PARENT.split("-")[1]
    assert entry["headers"]["traceparent"].split("-")[1:3] == [span.trace_id.hex(), span.span_id.hex()]


def test_a_collector_that_is_away_costs_nobody_an_answer(start: Start) -> None:
    running = start(telemetry={"otlp": "http://127.0.0.1:9", "gpus": False})
    assert [running.chat("hi").status_code for _ in range(5)] == [200] * 5


def test_gpus_as_the_driver_tells_them() -> None:
    found = gpus.parse("0, 87, 1024, 143771, 45, 512.30\n1, 0, 0, 143771, [N/A], 80\nrubbish\n")
    text = meters.render(found)
    assert 'catena_gpu_utilization_ratio{gpu="0"} 0.87' in text
    assert 'catena_gpu_memory_used_bytes{gpu="0"} 1073741824' in text
    assert 'catena_gpu_temperature_celsius{gpu="1"}' not in text
    assert gpus.parse("") == []


def test_label_values_cannot_break_a_line_and_series_are_bounded() -> None:
    counter = meters.Counter("c_total", "Help.", ("who",))
    counter.add('a"\n\\')
    assert meters.render([counter]).splitlines()[-1] == 'c_total{who="a\\"\\n\\\\"} 1'
    for number in range(meters.MOST_SERIES + 5):
        counter.add(str(number))
    assert len(counter.values) == meters.MOST_SERIES
