"""What can be set of an engine that is not ours: whom to ask, how long to wait, and how to start it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from catena.core.config import Config

Dialect = Literal["openai", "vllm", "sglang", "lmdeploy", "llama.cpp"]


class RemoteConfig(Config):
    """How an engine is asked."""

    model: str = ""
    """What the engine calls the model; empty: the first that it lists."""
    context: int | None = Field(default=None, ge=1)
    """Longest sequence in tokens; by default what the model or the engine says."""
    max_running: int = Field(default=32, ge=1)
    """Most requests under way at once when many are given."""
    max_waiting: int = Field(default=256, ge=0)
    """Most submitted requests beyond these; the next is refused at once."""
    connect_timeout_s: float = Field(default=10.0, gt=0)
    """Longest time until a connection stands."""
    silence_timeout_s: float = Field(default=600.0, gt=0)
    """Longest time in which nothing comes of an answer; then the request has failed."""
    retries: int = Field(default=4, ge=0)
    """How often a request is sent again that was refused for now (429, 503), or found nobody."""
    drain_s: float = Field(default=5.0, ge=0)
    """When it is closed: longest time that requests under way are given to finish."""


class UrlConfig(RemoteConfig):
    """An engine that runs already."""

    url: str = ""
    """Where it answers, up to and without the last part of the path: `http://host:8000/v1`."""
    key_env: str = "OPENAI_API_KEY"
    """Variable of the environment that holds the key to it, where it wants one."""
    tokenizer: Path | None = None
    """Folder with the model's tokenizer, where the model is not stored here: prompts then go as token ids."""
    dialect: Dialect = "openai"
    """What it understands beyond OpenAI's fields."""


class LaunchConfig(RemoteConfig):
    """An engine that is started here, as a child process in its own environment."""

    program: str = ""
    """The engine's program, the Python of its environment, or the folder of that; by default the setting
    `backends.NAME`, then what is on the path."""
    port: int = Field(default=0, ge=0, le=65535)
    """Port on loopback; 0 takes a free one."""
    arguments: tuple[str, ...] = ()
    """Further arguments, as the engine takes them."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Further variables of its environment."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Number format; by default the engine's choice for the model."""
    device: str = ""
    """Device, in the engine's own words; by default its choice."""
    tensor_parallel: int = Field(default=1, ge=1)
    """Devices that share each layer."""
    memory_share: float | None = Field(default=None, gt=0, le=1)
    """Share of the device's memory that the engine may take."""
    cache_format: str = ""
    """Number format of keys and values, in the engine's own words (fp8, q8_0, 8)."""
    gguf_type: Literal["f32", "f16", "bf16", "q8_0", "q4_0"] = "f16"
    """llama.cpp: the format that a model which is no GGUF file is written in first."""
    adapters: dict[str, Path] = Field(default_factory=dict)
    """Name to folder of adapters (LoRA) that requests may ask for."""
    start_timeout_s: float = Field(default=600.0, gt=0)
    """Longest time until it is ready."""
    health_timeout_s: float = Field(default=60.0, gt=0)
    """Longest time in which it does not answer when it is asked whether it lives; then it is ended."""
    stop_timeout_s: float = Field(default=15.0, ge=0)
    """Longest time that it is given to end by itself."""
