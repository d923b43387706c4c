"""Vectors and labels over HTTP, adapters by name."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import openai
import pytest
from transformers import BertForMaskedLM

from catena.core.generate import GENERATORS, Labelled
from catena.infer.engine import Engine
from catena.models.checkpoint import save
from catena.serve.app import build_app
from catena.serve.server import background
from tests.infer.test_embed import bert_config
from tests.infer.test_seq2seq import model_of

from .asking import ASK, post
from .scripted import Scripted


def test_vectors_come_as_numbers_and_in_base64(url: str, client: openai.OpenAI, engine: Engine) -> None:
    texts = ["hello", "你好世界"]
    wanted = [one.vector for one in engine.embed(texts)]
    found = client.embeddings.create(model="tiny", input=texts)  # the client asks for Base64 by itself
    for one, vector in zip(found.data, wanted, strict=True):
        np.testing.assert_allclose(one.embedding, vector, atol=1e-6)
    assert found.usage.prompt_tokens == sum(len(engine.codec.tokens(text)) for text in texts)
    plain = client.embeddings.create(model="tiny", input=texts, encoding_format="float")
    np.testing.assert_allclose([one.embedding for one in plain.data], wanted, atol=1e-7)
    coded = httpx.post(f"{url}/v1/embeddings", json={"model": "tiny", "input": "hello", "encoding_format": "base64"})
    numbers = np.frombuffer(base64.b64decode(coded.json()["data"][0]["embedding"]), dtype="<f4")
    np.testing.assert_allclose(numbers, wanted[0], atol=1e-6)


def test_inputs_may_be_tokens(client: openai.OpenAI, engine: Engine) -> None:
    ids = engine.codec.tokens("hello")
    by_text = client.embeddings.create(model="tiny", input="hello").data[0].embedding
    assert client.embeddings.create(model="tiny", input=ids).data[0].embedding == by_text
    both = client.embeddings.create(model="tiny", input=[ids, ids]).data
    np.testing.assert_allclose(both[1].embedding, by_text, atol=1e-6)


def test_fewer_dimensions_are_as_long_as_one(client: openai.OpenAI) -> None:
    whole = client.embeddings.create(model="tiny", input="hello").data[0].embedding
    short = client.embeddings.create(model="tiny", input="hello", dimensions=8).data[0].embedding
    assert len(short) == 8
    np.testing.assert_allclose(short, np.array(whole[:8]) / np.linalg.norm(whole[:8]), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input.1"),
        ({"input": ["a"] * 300}, "input"),
        ({"input": "x " * 400}, None),
        ({"input": [10**8]}, None),
        ({"dimensions": 10**6}, "dimensions"),
        ({"dimensions": 0}, "dimensions"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"model": "tinny"}, "model"),
    ],
)
def test_a_bad_value_is_refused_by_name(url: str, change: dict[str, Any], param: str | None) -> None:
    response = httpx.post(f"{url}/v1/embeddings", json={"model": "tiny", "input": "x", **change}, timeout=30)
    assert response.status_code == (404 if param == "model" else 400)
    assert response.json()["error"]["param"] == param


class Moods(Scripted):
    """A classifier by the length of a text."""

    def classify(self, texts: Sequence[str]) -> list[Labelled]:
        """Long texts are good."""
        return [Labelled({"bad": 1 / len(text), "good": 1 - 1 / len(text)}, len(text)) for text in texts]


def test_labels_come_with_their_probabilities(tokenizer: Any, url: str) -> None:
    with background(build_app({"moods": Moods(tokenizer, "")})) as address:
        told = httpx.post(f"{address}/v1/classify", json={"model": "moods", "input": ["long text", "x"]}).json()
        wrong = httpx.post(f"{address}/v1/embeddings", json={"model": "moods", "input": "x"})
    assert [one["label"] for one in told["data"]] == ["good", "bad"]
    assert told["data"][1]["probs"] == [1.0, 0.0]
    assert told["data"][0]["labels"] == ["bad", "good"]
    assert wrong.json()["error"]["code"] == "unsupported_model"
    refused = httpx.post(f"{url}/v1/classify", json={"model": "tiny", "input": "x"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")


def test_encoders_and_translators_are_served_as_what_they_are(
    tokenizer: Any, tmp_path: Path, client_of: Callable[[str], openai.OpenAI]
) -> None:
    save(BertForMaskedLM(bert_config(tokenizer)), tokenizer, tmp_path / "bert")
    save(model_of("t5", tokenizer), tokenizer, tmp_path / "t5")
    models = {name: GENERATORS.load("auto")(tmp_path / name) for name in ("bert", "t5")}
    with background(build_app(models)) as url:
        client = client_of(url)
        assert len(client.embeddings.create(model="bert", input=["hello", "世界"]).data) == 2
        with pytest.raises(openai.BadRequestError, match="does not generate"):
            client.completions.create(model="bert", prompt="hello")
        asked: dict[str, Any] = {"model": "t5", "prompt": "你好", "max_tokens": 8, "temperature": 0}
        whole = client.completions.create(**asked).choices[0].text
        assert "".join(chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True)) == whole
        with pytest.raises(openai.BadRequestError, match="no probability"):
            client.completions.create(**asked, echo=True, logprobs=1)
        assert httpx.get(f"{url}/health").json()["status"] == "ok"
    for model in models.values():
        model.close()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # of PEFT 0.21
def test_an_adapter_is_a_model_of_its_own_name(
    engine_of: Callable[..., Engine], adapter: Path, client_of: Callable[[str], openai.OpenAI]
) -> None:
    engine = engine_of()
    engine.load_adapter("french", adapter)
    with background(build_app({"tiny": engine}, fingerprints={"tiny": "0" * 64})) as url:
        client = client_of(url)
        assert [model.id for model in client.models.list()] == ["tiny", "tiny:french"]
        assert client.models.retrieve("tiny:french").model_dump()["parent"] == "tiny"

        def ask(name: str) -> Any:
            return post(url, {**ASK, "model": name, "temperature": 0, "max_tokens": 12}).json()

        plain, whole, short = ask("tiny"), ask("tiny:french"), ask("french")
        assert whole["choices"] == short["choices"] != plain["choices"]
        assert whole["model"] == "tiny:french"
        assert ask("tiny:german")["error"]["code"] == "model_not_found"
