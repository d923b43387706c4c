"""OpenTelemetry traces: one span for each request, in the words of the GenAI conventions. Without a collector, nothing.

The caller's `traceparent` goes on to the replica either way, so that a trace that began elsewhere does not end here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.types import Scope

from catena.core.registry import require
from catena.serve.gateway.call import Call
from catena.serve.gateway.config import TelemetryConfig
from catena.serve.gateway.scoped import header

TRACEPARENT = re.compile(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
OPERATIONS = {"chat": "chat", "completions": "text_completion", "responses": "chat", "embeddings": "embeddings"}


class Traces:
    """Spans to a collector, or only the hand-over of the caller's."""

    def __init__(self, config: TelemetryConfig, exporter: Any = None) -> None:
        self._tracer: Any = None
        self._provider: Any = None
        if not config.otlp and exporter is None:
            return
        sdk = require("opentelemetry.sdk.trace")
        export = require("opentelemetry.sdk.trace.export")
        sampling = require("opentelemetry.sdk.trace.sampling")
        resource = require("opentelemetry.sdk.resources").Resource.create({"service.name": "catena"})
        if exporter is None:
            http = require("opentelemetry.exporter.otlp.proto.http.trace_exporter")
            exporter = http.OTLPSpanExporter(endpoint=config.otlp.rstrip("/") + "/v1/traces", timeout=5)
        sampler = sampling.ParentBased(sampling.TraceIdRatioBased(config.sample))
        self._provider = sdk.TracerProvider(resource=resource, sampler=sampler, shutdown_on_exit=False)
        # In batches, from a thread of its own, with a bounded queue: a collector that is away costs nothing.
        self._provider.add_span_processor(export.BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("catena.gateway")

    @contextmanager
    def span(self, scope: Scope, call: Call) -> Iterator[None]:
        """Record a request while the block runs; gives the replica's `traceparent` to the call."""
        given = header(scope, b"traceparent")
        call.trace = given.decode() if TRACEPARENT.fullmatch(given) else ""
        if self._tracer is None:
            yield
            return
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        propagator = TraceContextTextMapPropagator()
        parent = propagator.extract({"traceparent": call.trace}) if call.trace else None
        operation = OPERATIONS.get(call.ask.route, call.ask.route)
        attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "catena",
            "gen_ai.request.model": call.ask.model,
            "http.route": call.ask.path,
            "catena.request_id": call.id,
        }
        span = self._tracer.start_span(
            f"{operation} {call.ask.model}", context=parent, kind=SpanKind.SERVER, attributes=attributes
        )
        carrier: dict[str, str] = {}
        from opentelemetry.trace import set_span_in_context

        propagator.inject(carrier, set_span_in_context(span))
        call.trace = carrier.get("traceparent", "")
        try:
            yield
        except BaseException as error:
            span.set_attribute("error.type", type(error).__name__)
            raise
        finally:
            prompt, written = call.tokens()
            span.set_attributes(
                {
                    "http.response.status_code": call.status,
                    "gen_ai.usage.input_tokens": prompt,
                    "gen_ai.usage.output_tokens": written,
                    "catena.replica": call.replica,
                    "catena.attempts": call.attempts,
                    "catena.arm": call.arm,
                    "catena.cache": call.cached,
                    "catena.first_token_s": call.first_s,
                }
            )
            span.end()

    def close(self) -> None:
        """Send what is left."""
        if self._provider is not None:
            self._provider.shutdown()
