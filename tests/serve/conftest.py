"""A real server on loopback over a tiny random model, and the official client."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from catena.infer.capacity import EngineConfig
from catena.infer.engine import Engine
from catena.models.tokenizer import train_tokenizer
from catena.serve.app import build_app
from catena.serve.config import ServeConfig
from catena.serve.server import background

from .scripted import HERMES

DIGEST = "0123456789abcdef" * 4


@pytest.fixture(scope="session", autouse=True)
def direct() -> Iterator[None]:
    """Reach loopback directly: a proxy of the environment is for other machines."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("NO_PROXY", "no_proxy"):
            patch.setenv(name, "127.0.0.1,::1,localhost")
        yield


def tiny_model(tokenizer: Any, context: int = 256) -> LlamaForCausalLM:
    """A model that knows nothing; always the same."""
    torch.manual_seed(1)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=context,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
        )
    )


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """All bytes, few merges."""
    return train_tokenizer(["what does the function do 你好世界 " * 20], 320)


@pytest.fixture(scope="session")
def hermes(tokenizer: Any) -> Any:
    """The same with a chat template that takes tools."""
    taking = copy.deepcopy(tokenizer)
    taking.chat_template = HERMES
    return taking


@pytest.fixture(scope="session")
def engine_of(tokenizer: Any) -> Iterator[Callable[..., Engine]]:
    """Return a function that opens an engine over a tiny random model whose answers never end by themselves."""
    opened: list[Engine] = []

    def make(tokenizer: Any = tokenizer, context: int = 256, **options: Any) -> Engine:
        model = tiny_model(tokenizer, context)
        engine = Engine(model, tokenizer, EngineConfig(**options))
        engine.ends = frozenset()
        opened.append(engine)
        return engine

    yield make
    for engine in opened:
        engine.close()


@pytest.fixture
def adapter(tokenizer: Any, tmp_path: Path) -> Path:
    """A folder with a random low-rank adapter for the tiny model."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(5)
    adapted = get_peft_model(
        tiny_model(tokenizer), LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"])
    )
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.5)
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture(scope="session")
def engine(engine_of: Callable[..., Engine]) -> Engine:
    """The engine behind `url`."""
    return engine_of()


@pytest.fixture(scope="session")
def hermes_engine(engine_of: Callable[..., Engine], hermes: Any) -> Engine:
    """The engine behind `hermes`, whose chat template takes tools."""
    return engine_of(hermes, 1024)


@pytest.fixture(scope="session")
def url(engine: Engine, hermes_engine: Engine) -> Iterator[str]:
    """The URL of a running server with the models `tiny` and `hermes`."""
    models = {"tiny": engine, "hermes": hermes_engine}
    app = build_app(models, fingerprints={"tiny": DIGEST}, config=ServeConfig(max_tokens=24))
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
