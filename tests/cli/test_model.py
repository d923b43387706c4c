"""chat and serve over a real tiny model: the official client, the pages an answer was learnt from, ports, signals."""

from __future__ import annotations

import io
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from catena.core.sample import Sample
from catena.core.types import ENDED, Run
from catena.hub.fsck import collect_garbage
from catena.hub.index import now
from catena.hub.store import Store, init_store, open_store
from catena.models.checkpoint import describe, save
from catena.models.tokenizer import train_tokenizer
from catena.workspace import Workspace
from tests.cli.conftest import Catena

QUESTION, ANSWER = "What does json.loads do?", "Deserialize a document to a Python object."


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer([f"{QUESTION} {ANSWER} 你好世界 " * 20], 320)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    target = tmp_path_factory.mktemp("model")
    save(LlamaForCausalLM(shape), tokenizer, target)
    return target


@pytest.fixture
def workspace(here: Path, folder: Path) -> Iterator[Store]:
    """A workspace with a model, and the conversations it was (as its run says) trained on."""
    store = init_store(here / ".catena")
    with store.new_dataset("conversation") as writer:
        messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
        writer.add(
            Sample("s1", {"messages": messages}, {"page": "pydoc:/json.html"}, "pydoc:/json.html", split="train")
        )
        messages = [{"role": "user", "content": "json.loads 有什么用？"}, messages[1]]
        writer.add(Sample("s2", {"messages": messages}, {"page": "pydoc:/json.html"}, split="test"))
        talk = writer.commit()
    model = store.put_model(folder, **describe(folder))
    run = Run(id="r0", group="g", step="talk", stage="data.converse", key="k0", output=talk.digest, started=now())
    store.index.finish(run.model_copy(update={"status": "done", "ended": now()}), talk, "talk")
    run = Run(id="r1", group="g", step="sft", stage="train.sft", key="k1", inputs={"data": talk.digest}, started=now())
    run = run.model_copy(update={"status": "done", "output": model.digest, "ended": now()})
    assert run.status in ENDED
    store.index.finish(run, model.model_copy(update={"made_by": "r1"}), "tiny", ("production",))
    yield store
    store.close()


def test_chat_answers_by_the_official_client_and_names_pages(workspace: Store, catena: Catena) -> None:
    result = catena("chat", "tiny@production", QUESTION, "你好", "--max-tokens", "8", "--json")
    assert result.code == 0, result.err
    first, second = result.json
    assert (first["question"], second["question"]) == (QUESTION, "你好")
    assert first["answer"]
    assert isinstance(first["sources"], list)


def test_chat_prints_question_answer_and_pages(workspace: Store, catena: Catena) -> None:
    result = catena("chat", "tiny", QUESTION, "--max-tokens", "4")
    assert result.out.startswith(f"? {QUESTION}\n")
    assert "\n  learnt from: " in result.out


def test_chat_asks_what_was_kept_back_and_says_what_was_expected(workspace: Store, catena: Catena) -> None:
    result = catena("chat", "tiny", "--examples", "3", "--max-tokens", "4")
    assert result.code == 0, result.err
    assert result.out.startswith("? json.loads 有什么用？\n")
    assert f"\n  expected: {ANSWER}\n" in result.out
    with Workspace(workspace) as opened:
        assert [example.expected for example in opened.model("tiny").examples()] == [ANSWER]
    first, second = catena("chat", "tiny", QUESTION, "--examples", "1", "--max-tokens", "4", "--json").json
    assert (first["question"], first["expected"], first["as_expected"]) == (QUESTION, None, None)
    assert (second["expected"], second["as_expected"]) == (ANSWER, False)


def test_chat_without_kept_back_questions_says_so(workspace: Store, folder: Path, catena: Catena) -> None:
    model = workspace.put_model(folder, license="MIT", **describe(folder))
    workspace.index.add_artifact(model)
    workspace.index.add_name("bare", model.digest)
    result = catena("chat", "bare", "--examples", "3")
    assert (result.code, "no questions to try it with" in result.err) == (2, True)
    assert "hint: Ask your own" in result.err


def test_lineage_of_an_answer_leads_to_its_page(workspace: Store, catena: Catena) -> None:
    (source,) = catena("lineage", "tiny", "--answer", ANSWER.replace(" ", "  "), "--json").json
    assert (source["page"], source["similarity"], source["sample_id"]) == ("pydoc:/json.html", 1.0, "s1")
    near = catena("lineage", "tiny", "--answer", "Deserialize a document to an object", "--json").json
    assert 0.2 < near[0]["similarity"] < 1


def test_chat_reads_questions_from_a_pipe(workspace: Store, catena: Catena, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTION}\n\nAnother?\n"))
    result = catena("chat", "tiny", "--max-tokens", "2", "--json")
    assert result.code == 0, result.err
    assert [answer["question"] for answer in result.json] == [QUESTION, "Another?"]


def test_question_longer_than_the_context_is_a_usage_error(workspace: Store, catena: Catena) -> None:
    result = catena("chat", "tiny", "word " * 2000)
    assert result.code == 2
    assert "the server refused" in result.err


def test_chat_with_a_server_that_is_away_is_a_remote_error(workspace: Store, catena: Catena) -> None:
    result = catena("chat", "tiny", "Hello?", "--url", "http://127.0.0.1:9")
    assert result.code == 8
    assert "no server answers at" in result.err


def test_chat_with_a_dataset_is_refused(workspace: Store, catena: Catena) -> None:
    result = catena("chat", "talk", "Hello?")
    assert (result.code, "is a dataset" in result.err) == (2, True)


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    command = [sys.executable, "-m", "catena", "serve", "tiny@production", "--json", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            lines = [child.stdout.readline() for _ in range(5)]
            yield child, json.loads("".join(lines))
        finally:
            child.terminate()
            child.communicate(timeout=300)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # of PEFT 0.21
def test_serve_takes_adapters_hosts_and_options_and_answers_until_it_is_told_to_end(
    workspace: Store, folder: Path, tmp_path: Path, catena: Catena
) -> None:
    from peft import LoraConfig, get_peft_model

    from catena.models.checkpoint import load_model

    base = load_model(folder)
    get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])).save_pretrained(tmp_path)
    stored = workspace.put_model(tmp_path)
    workspace.index.add_artifact(stored)
    workspace.index.add_name("lora", stored.digest)
    options = ("--adapter", "french=lora", "--allow-host", "models.example", "--engine", "max_running=2")
    with (
        serving("--port", "0", *options, "--set", "serve.max_tokens=3") as (child, ready),
        openai.OpenAI(base_url=ready["url"], api_key="none", max_retries=0) as client,
    ):
        assert set(ready) == {"url", "model", "digest"}
        assert [model.id for model in client.models.list()] == ["tiny", "tiny:french"]
        wanted = [{"lora_name": f"a-{ref}", "lora_path": ref} for ref in ("lora", "nothing", "tiny")]
        loaded = [httpx.post(f"{ready['url']}/load_lora_adapter", json=one, timeout=60).status_code for one in wanted]
        assert loaded == [200, 404, 422]
        assert "tiny:a-lora" in [model.id for model in client.models.list()]
        named = client.with_options(default_headers={"host": "models.example"})
        asked: Any = {"messages": [{"role": "user", "content": QUESTION}], "seed": 1}
        answer = named.chat.completions.create(model="tiny:french", **asked)
        assert answer.usage is not None
        assert answer.usage.completion_tokens <= 3
        told = catena("chat", "tiny", QUESTION, "--url", ready["url"], "--max-tokens", "4", "--json")
        assert told.json[0]["answer"]
        beside = open_store(workspace.root)
        assert catena("gc").code == 5, "a server reads the checkout"
        beside.close()
        child.send_signal(signal.SIGTERM)
        assert child.wait(300) == 0
    assert collect_garbage(workspace).files >= 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--adapter", "french"), "has no name"),
        (("--adapter", "french=nothing"), "nothing"),
        (("--engine", "max_runing=2"), "Did you mean 'max_running'"),
    ],
)
def test_serve_refuses_what_it_cannot_take(
    workspace: Store, catena: Catena, arguments: tuple[str, ...], says: str
) -> None:
    result = catena("serve", "tiny", "--port", "0", *arguments)
    assert result.code in (2, 3)
    assert says in result.err


def test_port_in_use_is_said_before_the_model_is_loaded(workspace: Store, catena: Catena) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = catena("serve", "tiny", "--port", str(port))
    assert result.code == 5
    assert f"port {port}" in result.err
    assert "--port 0" in result.err
    assert not list((workspace.root / "checkouts").glob("*"))


def test_model_without_weights_is_a_data_error(workspace: Store, catena: Catena, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    hollow = workspace.put_model(empty)
    workspace.index.add_artifact(hollow)
    workspace.index.add_name("hollow", hollow.digest)
    result = catena("chat", "hollow", "Hello?")
    assert result.code == 4
    assert result.err.startswith("error: ")


def test_bench_measures_a_stored_model_and_a_folder(workspace: Store, folder: Path, catena: Catena) -> None:
    small = ("--prompt-tokens", "4", "--new-tokens", "2")
    told = catena("bench", "--model", "tiny", "--batch-size", "1", "--batch-size", "2", *small, "--json")
    assert told.code == 0, told.err
    assert [row["batch_size"] for row in told.json["rows"]] == [1, 2]
    shown = catena("bench", "--model", str(folder), *small)
    assert len(shown.out.split("\t")) == 8
    fitted = catena("bench", "--model", str(folder))  # its context is 128 tokens
    assert fitted.code == 0, fitted.err
    assert "the context is 128 tokens: prompts of 103 and answers of 25 are measured" in fitted.err
    for line, reason in ((("bench",), "--model is missing"), (("bench", "--model", "nobody"), "nobody")):
        wrong = catena(*line)
        assert wrong.code == 2 or reason in wrong.err
        assert reason in wrong.err


def test_bench_serve_loads_a_server(workspace: Store, here: Path, catena: Catena) -> None:
    load = ("--requests", "6", "--concurrency", "2", "--max-tokens", "3", "--goodput", "e2el=60000")
    told = catena("bench", "serve", "tiny", *load, "--plot", "load.svg", "--set", "input_words=3", "--json")
    assert told.code == 0, told.err
    [level] = told.json["levels"]
    assert level["completed"] == 6
    assert level["goodput_per_s"] == level["requests_per_s"]
    assert (here / "load.svg").exists()
    for line, reason in (
        (("bench", "serve"), "a model or --url"),
        (("bench", "serve", "tiny", "--goodput", "speed=3"), "no limit"),
        (("bench", "serve", "tiny", "--prompts", "absent.txt"), "absent.txt"),
        (("bench", "serve", "--url", "http://127.0.0.1:1"), "--name is missing"),
    ):
        wrong = catena(*line)
        assert wrong.code
        assert reason in wrong.err


def test_serve_with_another_engine_answers_by_it(workspace: Store, here: Path, tmp_path: Path) -> None:
    """A scripted one: the gateway, the settings and the child process are real."""
    program = tmp_path / "vllm"
    source = Path(__file__).parent.parent / "infer" / "fake_engine.py"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -S {source} "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    (here / "catena.yaml").write_text(f"backends: {{vllm: {program}}}\n", encoding="utf-8")
    with (
        serving("--port", "0", "--backend", "vllm") as (_, ready),
        openai.OpenAI(base_url=ready["url"], api_key="none", max_retries=0) as client,
    ):
        answer = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "Hello"}], max_tokens=5, logprobs=True
        )
        assert answer.usage is not None
        assert answer.usage.completion_tokens == len(answer.choices[0].logprobs.content) == 5  # type: ignore[union-attr, arg-type]
        stream = client.completions.create(model="tiny", prompt="Hello there", max_tokens=6, stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream)


def test_export_writes_a_file_and_keeps_it_as_a_version(workspace: Store, catena: Catena, tmp_path: Path) -> None:
    result = catena("export", "tiny", "--type", "q8_0", "--to", str(tmp_path / "out"), "--json")
    assert result.code == 0, result.err
    assert result.json["ref"] == "tiny-q8_0@1"
    assert result.json["files"] == [str(tmp_path / "out" / "model.gguf")]
    assert (tmp_path / "out" / "model.gguf").read_bytes()[:4] == b"GGUF"
    again = catena("export", "tiny", "--to", str(tmp_path / "out"))
    assert (again.code, "is not empty" in again.err) == (2, True)
    wrong = catena("export", "tiny", "--type", "q9")
    assert (wrong.code, "type" in wrong.err) == (2, True)
