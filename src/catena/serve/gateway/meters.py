"""Counts, gauges and histograms of the gateway, as Prometheus text: dictionaries, nothing waits or locks."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from catena.serve.gateway.pool import Pool

Labels = tuple[tuple[str, str], ...]
Sample = tuple[str, Labels, float]
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
MOST_SERIES = 10_000
"""Of one metric; label values come from people, and memory must not."""
Kind = Literal["counter", "gauge", "histogram"]


class Counter:
    """A number for each combination of labels."""

    def __init__(self, name: str, help: str, labels: tuple[str, ...], kind: Kind = "counter") -> None:
        self.name, self.help, self.labels, self.kind = name, help, labels, kind
        self.values: dict[tuple[str, ...], float] = {}

    def add(self, *values: str, by: float = 1.0) -> None:
        """Add to the number of these label values."""
        if values in self.values or len(self.values) < MOST_SERIES:
            self.values[values] = self.values.get(values, 0.0) + by

    def put(self, *values: str, to: float) -> None:
        """Set the number of these label values (a gauge)."""
        if values in self.values or len(self.values) < MOST_SERIES:
            self.values[values] = to

    def samples(self) -> Iterable[Sample]:
        """Yield what there is."""
        for values, number in self.values.items():
            yield self.name, tuple(zip(self.labels, values, strict=True)), number


class Histogram:
    """How many were at most so long, for each combination of labels."""

    kind: Kind = "histogram"

    def __init__(self, name: str, help: str, labels: tuple[str, ...], bounds: tuple[float, ...] = SECONDS) -> None:
        self.name, self.help, self.labels, self.bounds = name, help, labels, bounds
        self.values: dict[tuple[str, ...], list[float]] = {}

    def add(self, *values: str, of: float) -> None:
        """Count one observation."""
        row = self.values.get(values)
        if row is None:
            if len(self.values) >= MOST_SERIES:
                return
            row = self.values[values] = [0.0] * (len(self.bounds) + 2)
        row[bisect_left(self.bounds, of)] += 1
        row[-1] += of

    def samples(self) -> Iterable[Sample]:
        """Yield cumulative buckets, sum and count."""
        for values, row in self.values.items():
            labels = tuple(zip(self.labels, values, strict=True))
            total = 0.0
            for bound, count in zip((*self.bounds, float("inf")), row[:-1], strict=True):
                total += count
                told = "+Inf" if bound == float("inf") else f"{bound:g}"
                yield f"{self.name}_bucket", (*labels, ("le", told)), total
            yield f"{self.name}_sum", labels, row[-1]
            yield f"{self.name}_count", labels, total


def render(families: Iterable[Counter | Histogram]) -> str:
    """Return Prometheus text."""
    lines: list[str] = []
    for family in families:
        lines += [f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}"]
        lines += [f"{name}{labelled(labels)} {number:.12g}" for name, labels, number in family.samples()]
    return "\n".join(lines) + "\n"


def labelled(labels: Labels) -> str:
    """Return labels in braces, or nothing."""
    inside = ",".join(f'{key}="{_escape(value)}"' for key, value in labels)
    return f"{{{inside}}}" if inside else ""


def relabelled(text: str, label: str, value: str) -> dict[str, list[str]]:
    """Add a label to every sample of another server's text; return the lines of each family."""
    families: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("#"):
            parts = line.split(" ", 3)
            if len(parts) > 2 and parts[1] == "TYPE":
                families.setdefault(parts[2], [line])
        elif line.strip():
            name = line.partition("{")[0].partition(" ")[0]
            head, brace, rest = line.partition("{")
            extra = f'{label}="{_escape(value)}"'
            if brace:
                whole = f"{head}{{{extra}{',' if not rest.startswith('}') else ''}{rest}"
            else:
                head, _, number = line.partition(" ")
                whole = f"{head}{{{extra}}} {number}"
            families.setdefault(name, []).append(whole)
    return families


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class Meters:
    """Everything that the gateway counts."""

    def __init__(self) -> None:
        self.requests = Counter(
            "catena_gateway_requests_total", "Requests by route, model and status.", ("route", "model", "status")
        )
        self.seconds = Histogram("catena_gateway_request_seconds", "Time to the end of the answer.", ("route", "model"))
        self.first = Histogram(
            "catena_gateway_first_token_seconds", "Time to the first token, or to a whole answer.", ("model",)
        )
        self.tokens = Counter("catena_gateway_tokens_total", "Tokens of prompts and answers.", ("model", "kind"))
        self.retries = Counter("catena_gateway_retries_total", "Attempts after a first one that failed.", ("model",))
        self.refused = Counter("catena_gateway_refused_total", "Requests turned away, by reason.", ("model", "reason"))
        self.cache = Counter("catena_gateway_cache_total", "Looks into the cache.", ("model", "kind", "result"))
        self.cut = Counter("catena_gateway_cut_streams_total", "Streams that ended before their end.", ("model",))

    def families(self) -> list[Counter | Histogram]:
        """Return all of them."""
        return [value for value in vars(self).values() if isinstance(value, Counter | Histogram)]


def gauges(pools: Mapping[str, Pool]) -> list[Counter]:
    """Return what is so at the moment."""
    replicas = Counter("catena_gateway_replicas", "Replicas by phase.", ("model", "phase"), "gauge")
    running = Counter("catena_gateway_running", "Requests that replicas have.", ("model",), "gauge")
    waiting = Counter("catena_gateway_waiting", "Requests that wait for a replica.", ("model",), "gauge")
    restarts = Counter("catena_gateway_replica_ends_total", "Replicas that ended and were replaced.", ("model",))
    poison = Counter("catena_gateway_poison_total", "Requests that ended two replicas.", ("model",))
    prefix = Counter("catena_gateway_prefix_hits_total", "Requests whose beginning a replica knew.", ("model",))
    states = Counter("catena_gateway_breaker_open", "1 where a replica is left alone.", ("model", "replica"), "gauge")
    for name, pool in pools.items():
        for phase in ("starting", "ready", "waiting", "draining"):
            replicas.put(name, phase, to=sum(slot.phase == phase for slot in pool.slots.values()))
        running.put(name, to=pool.running)
        waiting.put(name, to=pool.waiting)
        restarts.put(name, to=pool.deaths)
        poison.put(name, to=pool.poison.convictions)
        prefix.put(name, to=pool.router.hits)
        for backend in pool.ready():
            states.put(name, backend.id, to=float(backend.breaker.state != "closed"))
    return [replicas, running, waiting, restarts, poison, prefix, states]
