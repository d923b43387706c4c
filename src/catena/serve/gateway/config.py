"""`deploy.yaml`: which models there are, how many replicas of each, and the bounds in front of them.

models:
  helper: {model: python-helper@production, replicas: {min: 1, max: 3}}
limits:
  rules: [{per: key, requests: 100/minute}]
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import Field, model_validator

from catena.core.config import Config, override, parse
from catena.core.errors import ConfigError, NotFound
from catena.govern.config import GovernConfig
from catena.serve.config import ServeConfig
from catena.serve.jobs.config import JobsConfig

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]
REDIS = ("redis://", "rediss://", "unix://")
NAME = r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}"


def require_http(field: str, url: str) -> None:
    """Raise `ValueError` for what is no http(s) URL with a host. It is not repeated: a URL may hold a password."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise ValueError(f"{field} needs http:// or https:// and a host, for example http://10.0.0.7:8000")


def require_store(store: str, *words: str) -> None:
    """Raise `ValueError` for what is neither one of the words nor the URL of a Redis."""
    if store not in words and not store.startswith(REDIS):
        known = ", ".join(filter(None, words))
        raise ValueError(f"store is {known} or the URL of a Redis (redis://host:6379/0, rediss://, unix://)")


class ScalingConfig(Config):
    """When to have more replicas, and when fewer."""

    queue: Positive = 8.0
    """Requests at once (running and waiting) that one replica should have; more for long makes a further replica."""
    latency_s: Positive | None = None
    """P95 of the time to the first token that is still good; above it for long makes a further replica."""
    up_s: float = Field(default=10.0, ge=0)
    """Least time between two steps up, in seconds."""
    down_s: float = Field(default=120.0, ge=0)
    """So long fewer replicas must have been enough before one goes, in seconds."""


class ReplicaConfig(Config):
    """Replicas of one model: how many, and how they are watched."""

    min: int = Field(default=1, ge=0, le=64)
    """Fewest replicas."""
    max: int = Field(default=1, ge=1, le=64)
    """Most replicas; the number moves between the two by `scaling`."""
    in_flight: int = Field(default=32, ge=1)
    """Most requests that one replica has at once; the others wait in the gateway."""
    scaling: ScalingConfig = ScalingConfig()
    start_s: Positive = 600.0
    """Longest time from the start of a process to its first answer, in seconds."""
    health_s: Positive = 2.0
    """Time between two looks at a replica, in seconds."""
    health_timeout_s: Positive = 10.0
    """So long a look may take, in seconds."""
    health_failures: int = Field(default=3, ge=1)
    """So many looks in a row must fail before a replica is replaced."""
    drain_s: float = Field(default=30.0, ge=0)
    """A replica that goes may finish its requests for so long, in seconds."""
    backoff_s: Positive = 0.5
    """Wait before the first restart; doubled at each further one, at most `backoff_max_s`, in seconds."""
    backoff_max_s: Positive = 30.0
    """Longest wait before a restart, in seconds."""
    prewarm: bool = True
    """Send a replica a first request of our own before anybody else's."""

    @model_validator(mode="after")
    def _ordered(self) -> ReplicaConfig:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is more than max ({self.max})")
        return self


class ModelConfig(Config):
    """One model: exactly one of `model`, `script`, `urls`, `dns` says where its replicas come from."""

    model: str = ""
    """A stored model (name, name@tag, name@version, digest): the gateway runs `catena serve` for each replica."""
    script: tuple[str, ...] = ()
    """A Python file and its arguments that serve instead; when ready it prints one line of JSON with its `url`."""
    urls: tuple[str, ...] = ()
    """Servers that somebody else runs, for example `http://10.0.0.7:8000`."""
    dns: str = ""
    """`http://name:port`: every address of the name is a replica (a headless service of Kubernetes)."""
    served: str = ""
    """The model's name at the replicas, where it is another than here."""
    revision: str = ""
    """Names the weights behind `script`, `urls` or `dns` in the cache; a stored model has its digest."""
    key_variable: str = ""
    """Environment variable that holds the bearer key for `urls`."""
    adapters: dict[str, str] = Field(default_factory=dict)
    """LoRAs beside it: name to stored model."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """How the engine runs it, as for `catena serve --engine`."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the replicas' processes."""
    replicas: ReplicaConfig = ReplicaConfig()

    @model_validator(mode="after")
    def _one_source(self) -> ModelConfig:
        if sum(map(bool, (self.model, self.script, self.urls, self.dns))) != 1:
            raise ValueError("exactly one of model, script, urls and dns must be given")
        for url in self.urls:
            require_http("urls", url)
        if self.dns:
            require_http("dns", self.dns)
        return self

    @property
    def owned(self) -> bool:
        """Whether the gateway starts and ends the replicas itself."""
        return bool(self.model or self.script)


class RoutingConfig(Config):
    """How a replica is chosen, and what happens where there is none."""

    prefix: bool = True
    """Prefer the replica that has seen the beginning of the prompt."""
    slack: float = Field(default=1.25, ge=1)
    """The preferred replica may have so much more work than the mean before another is taken."""
    queue: int = Field(default=512, ge=0)
    """Most requests of a model that wait for a replica; the next gets 503."""
    queue_s: Positive = 30.0
    """Longest wait for a replica, in seconds; then 503."""
    attempts: int = Field(default=3, ge=1)
    """Most replicas that one request is given to; only before its first token."""
    connect_s: Positive = 5.0
    """Longest time for a connection to a replica, in seconds."""
    first_token_s: Positive = 600.0
    """Longest silence of a replica, in seconds."""
    poison_s: Positive = 600.0
    """So long a request that ended two replicas is remembered, in seconds."""
    max_answer_bytes: int = Field(default=64 << 20, ge=1)
    """Largest answer that is not streamed."""


class BreakerConfig(Config):
    """When a replica is left alone for a while."""

    window_s: Positive = 30.0
    """How far back failures and slow answers count, in seconds."""
    least: int = Field(default=10, ge=1)
    """Fewest answers in the window before it can open."""
    errors: Share = 0.5
    """Share of failures at which it opens."""
    slow_s: Positive | None = None
    """An answer whose first token takes longer counts as slow; none: slowness does not open it."""
    slow: Share = 0.8
    """Share of slow answers at which it opens."""
    open_s: Positive = 5.0
    """Time before the first probe, in seconds; doubled at each failed one."""
    open_max_s: Positive = 60.0
    """Longest time between probes, in seconds."""
    probes: int = Field(default=3, ge=1)
    """So many good answers close it again."""


class RuleConfig(Config):
    """One limit. It counts for each value of `per` by itself."""

    per: Literal["key", "subject", "tenant", "model", "all"] = "key"
    """What is counted apart from each other."""
    models: tuple[str, ...] = ()
    """Only these models; empty: all together."""
    roles: tuple[str, ...] = ()
    """Only these roles; empty: everybody."""
    requests: str = ""
    """For example 100/minute or 5/second."""
    tokens: str = ""
    """Tokens of prompts and answers, for example 100000/day."""

    @model_validator(mode="after")
    def _one_amount(self) -> RuleConfig:
        if bool(self.requests) == bool(self.tokens):
            raise ValueError("exactly one of requests and tokens must be given")
        from catena.serve.gateway.limits import amount

        amount(self.requests or self.tokens)
        return self


class LimitsConfig(Config):
    """Rates and quotas."""

    store: str = "memory"
    """`memory`, or a Redis URL that many gateways share."""
    rules: tuple[RuleConfig, ...] = ()
    """Every rule that fits a request must have room for it."""
    without_store: Literal["local", "refuse"] = "local"
    """While Redis is away: count in this process alone, or answer 503."""

    @model_validator(mode="after")
    def _known_store(self) -> LimitsConfig:
        require_store(self.store, "memory")
        return self


class SemanticConfig(Config):
    """Answers to questions that mean the same. Off unless a model is named."""

    model: str = ""
    """The model of this gateway that turns texts into vectors; empty: off."""
    similarity: float = Field(default=0.95, gt=0, le=1)
    """Least cosine between two questions that are taken as one."""
    entries: int = Field(default=1000, ge=1)
    """Most questions that are kept for a tenant, a model and a set of parameters."""


class CacheConfig(Config):
    """Answers that are given again. Never to another tenant than the one that they were made for."""

    store: str = ""
    """Empty: off. `memory`, `sqlite` (in the state folder), or a Redis URL."""
    ttl_s: Positive = 86400.0
    """So long an answer is kept, in seconds."""
    max_bytes: int = Field(default=256 << 20, ge=1)
    """Most bytes of answers that are kept (memory and SQLite; a Redis has its own `maxmemory`). Half of them are the
    semantic cache's, where it is on."""
    semantic: SemanticConfig = SemanticConfig()

    @model_validator(mode="after")
    def _known_store(self) -> CacheConfig:
        require_store(self.store, "", "memory", "sqlite")
        return self


class TelemetryConfig(Config):
    """What is told outside; Prometheus always finds `/metrics`."""

    otlp: str = ""
    """URL that traces are sent to (OTLP over HTTP), for example `http://collector:4318`; empty: none."""
    sample: float = Field(default=1.0, ge=0, le=1)
    """Share of requests that are traced, where the caller does not say it."""
    gpus: bool = True
    """Ask `nvidia-smi` for the use of GPUs, where there is one."""

    @model_validator(mode="after")
    def _known_collector(self) -> TelemetryConfig:
        if self.otlp:
            require_http("otlp", self.otlp)
        return self


class DeployConfig(Config):
    """Everything that `catena up` needs to know."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port; 0 takes any free one."""
    state: Path = Path("gateway")
    """Folder for the cache, releases and their change log; relative to the workspace."""
    models: dict[Annotated[str, Field(pattern=f"^{NAME}$")], ModelConfig] = Field(min_length=1)
    """Name for clients to how it is served."""
    candidates: dict[str, ModelConfig] = Field(default_factory=dict)
    """Models that `catena release start` may name, beside stored ones; nothing of them runs before."""
    bake_s: float = Field(default=600.0, ge=0)
    """So long the replicas before a release stay warm after everybody has the new ones, in seconds."""
    http: ServeConfig = ServeConfig()
    """Bounds of the HTTP side."""
    routing: RoutingConfig = RoutingConfig()
    breaker: BreakerConfig = BreakerConfig()
    limits: LimitsConfig = LimitsConfig()
    cache: CacheConfig = CacheConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    jobs: JobsConfig = JobsConfig()
    govern: GovernConfig = GovernConfig()
    """Keys, audit and moderation, as in `catena.yaml`."""
    console: bool = False
    """Whether the web console runs beside it, below /console of the same address."""

    @model_validator(mode="after")
    def _known_models(self) -> DeployConfig:
        named = {name for rule in self.limits.rules for name in rule.models}
        named |= {self.cache.semantic.model} - {""}
        if unknown := sorted(named - set(self.models)):
            raise ValueError(f"there is no model {unknown[0]!r} among models")
        return self


def read_deploy(file: Path, assignments: tuple[str, ...] = ()) -> DeployConfig:
    """Read a deploy file, with `a.b=c` applied. Raises `NotFound`, or `ConfigError` that names the place."""
    hint = "docs/gateway.md has a worked one; its keys are the fields of DeployConfig (serve/gateway/config.py)."
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {file}", hint="docs/gateway.md has a worked one.") from error
    except OSError as error:
        raise NotFound(f"{file} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid YAML: {error}", hint=hint) from error
    if not isinstance(values, dict):
        told = f"{file}: a deployment is a mapping, for example `models: {{helper: {{model: helper}}}}`"
        raise ConfigError(told, hint=hint)
    try:
        return parse(DeployConfig, override(values, assignments), where=str(file))
    except ConfigError as error:
        error.hint = error.hint or hint
        raise
