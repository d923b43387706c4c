"""A real server on loopback over a tiny random model, and the official client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from catena.infer.capacity import EngineConfig
from catena.infer.engine import Engine
from catena.models.tokenizer import train_tokenizer
from catena.serve.app import build_app
from catena.serve.openai import ServeConfig
from catena.serve.server import background

DIGEST = "0123456789abcdef" * 4


@pytest.fixture(scope="session", autouse=True)
def direct() -> Iterator[None]:
    """Reach loopback directly: a proxy of the environment is for other machines."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("NO_PROXY", "no_proxy"):
            patch.setenv(name, "127.0.0.1,::1,localhost")
        yield


@pytest.fixture(scope="session")
def engine_of() -> Iterator[Callable[..., Engine]]:
    """Return a function that opens an engine over a tiny random model whose answers never end by themselves."""
    tokenizer = train_tokenizer(["what does the function do 你好世界 " * 20], 320)
    opened: list[Engine] = []

    def make(**options: Any) -> Engine:
        torch.manual_seed(1)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=48,
                intermediate_size=96,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=256,
                initializer_range=0.3,
                bos_token_id=None,
                eos_token_id=1,
                pad_token_id=0,
            )
        )
        engine = Engine(model, tokenizer, EngineConfig(**options))
        engine.ends = frozenset()
        opened.append(engine)
        return engine

    yield make
    for engine in opened:
        engine.close()


@pytest.fixture(scope="session")
def engine(engine_of: Callable[..., Engine]) -> Engine:
    """The engine behind `url`."""
    return engine_of()


@pytest.fixture(scope="session")
def url(engine: Engine) -> Iterator[str]:
    """The URL of a running server with one model, `tiny`."""
    app = build_app({"tiny": engine}, fingerprints={"tiny": DIGEST}, config=ServeConfig(max_tokens=24))
    with background(app) as address:
        yield address


@pytest.fixture
def client_of() -> Iterator[Callable[[str], openai.OpenAI]]:
    """Return a function that gives the official client for a URL."""
    opened: list[openai.OpenAI] = []

    def make(url: str) -> openai.OpenAI:
        opened.append(openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=30))
        return opened[-1]

    yield make
    for client in opened:
        client.close()


@pytest.fixture
def client(url: str, client_of: Callable[[str], openai.OpenAI]) -> openai.OpenAI:
    """The official client, talking to `url`."""
    return client_of(url)
