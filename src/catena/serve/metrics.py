"""`/metrics`: the engine's statistics and the counts of requests, as Prometheus text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from starlette.responses import PlainTextResponse, Response

from catena.core.generate import StreamingGenerator
from catena.serve.endpoint import Counters

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Labels = Mapping[str, str]


def answer(text: str) -> Response:
    """Return the response that is Prometheus text."""
    return PlainTextResponse(text, media_type=CONTENT_TYPE)


def render(models: Mapping[str, StreamingGenerator], counters: Counters) -> str:
    """Return every metric; those whose name ends in `_total` are counters, the others gauges."""
    series: dict[str, list[tuple[Labels, float]]] = {}
    for model, generator in models.items():
        for name, value in generator.stats().items():
            series.setdefault(f"catena_engine_{name}", []).append(({"model": model}, value))
    series["catena_requests_total"] = [
        ({"route": route, "model": model, "status": str(status)}, count)
        for (route, model, status), count in counters.answered.items()
    ]
    series["catena_requests_in_flight"] = [({"route": route}, count) for route, count in counters.in_flight.items()]
    return "".join(_family(name, samples) for name, samples in sorted(series.items()))


def render_status(part: str, values: Mapping[str, float]) -> str:
    """Return what one part of a server counts: `values` by the end of their names."""
    return "".join(_family(f"catena_{part}_{name}", [({}, value)]) for name, value in sorted(values.items()))


def _family(name: str, samples: Iterable[tuple[Labels, float]]) -> str:
    kind = "counter" if name.endswith("_total") else "gauge"
    return "".join([f"# TYPE {name} {kind}\n", *(f"{name}{_labels(labels)} {value:g}\n" for labels, value in samples)])


def _labels(labels: Labels) -> str:
    inside = ",".join(f'{key}="{_escape(value)}"' for key, value in labels.items())
    return f"{{{inside}}}" if inside else ""


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
