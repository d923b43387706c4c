"""A replica that answers at once and does what prompts say: real HTTP, a real process, no model.

    python replica.py [--model NAME] [--delay S] [--error-rate P] [--say TEXT] [--dead-on-start] [--gibberish] ...

A prompt may say `die` (the process ends), `sleep S`, `status N`, `cut` (the stream ends in the middle), `hang`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import resource
import signal
import sys
import time
import zlib
from typing import Any

import orjson

from catena.serve.config import ServeConfig
from catena.serve.server import listen, serve

options = argparse.Namespace()
seen: list[dict[str, Any]] = []
sick = False
dice = random.Random(0)


def prompt_of(body: dict[str, Any]) -> str:
    if "messages" in body:
        return str(body["messages"][-1]["content"])
    return str(body.get("prompt") or body.get("input") or "")


def text_for(prompt: str) -> str:
    if options.say:
        return str(options.say)
    if options.empty:
        return ""
    if options.gibberish:
        return "".join(chr(dice.randrange(33, 1200)) for _ in range(80))
    if options.natural:
        words = "the model answers this question with a few plain words and then it ends as it should".split()  # noqa: SIM905
        said = [dice.choice(words) for _ in range(24)]
        return " ".join([*said[:12], options.mixed, *said[12:]] if options.mixed else said)
    return f"you said {prompt[:200]} to {options.model}"


def crash() -> None:
    """End as native code ends that reads where nothing is."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(60)


async def respond(send: Any, status: int, body: Any, kind: bytes = b"application/json") -> None:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(data))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


def compressed(send: Any) -> Any:
    """Compress what is sent, as a proxy in front of a server may do."""
    packer = zlib.compressobj(wbits=31)

    async def packed(message: Any) -> None:
        if message["type"] == "http.response.start":
            heads = [pair for pair in message["headers"] if pair[0] != b"content-length"]
            message = {**message, "headers": [*heads, (b"content-encoding", b"gzip")]}
        else:
            more = message.get("more_body", False)
            body = packer.compress(message["body"]) + packer.flush(zlib.Z_SYNC_FLUSH if more else zlib.Z_FINISH)
            message = {**message, "body": body}
        await send(message)

    return packed


async def stream(send: Any, body: dict[str, Any], text: str, cut: bool) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}

    def event(delta: Any, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return b"data: " + orjson.dumps({**base, "choices": [choice]}) + b"\n\n"

    async def out(data: bytes, more: bool = True) -> None:
        await send({"type": "http.response.body", "body": data, "more_body": more})

    await out(event({"role": "assistant", "content": ""}))
    if options.hello_s:
        await asyncio.sleep(options.hello_s)
    words = re.findall(r"\S+\s*", text)
    for number, word in enumerate(words):
        await out(event({"content": word}))
        if options.token_s:
            await asyncio.sleep(options.token_s)
        if cut and number == 1:
            crash()
    await out(event({}, "stop") + b"data: [DONE]\n\n", more=False)


async def app(scope: Any, receive: Any, send: Any) -> None:
    path = scope["path"]
    if options.compress and b"gzip" in dict(scope["headers"]).get(b"accept-encoding", b""):
        send = compressed(send)
    if path == "/health":
        await respond(send, 503 if sick else 200, {"status": "ok"})
        return
    if path == "/metrics":
        await respond(
            send, 200, b'# TYPE catena_engine_running gauge\ncatena_engine_running{model="m"} 1\n', b"text/plain"
        )
        return
    if path == "/seen":
        await respond(send, 200, {"pid": os.getpid(), "seen": seen})
        return
    data = b""
    while True:
        message = await receive()
        data += message.get("body", b"")
        if not message.get("more_body"):
            break
    await answer(path, orjson.loads(data), scope, send)


async def answer(path: str, body: dict[str, Any], scope: Any, send: Any) -> None:
    global sick
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    if options.record:
        seen.append({"path": path, "body": body, "headers": headers, "at": time.time()})
    prompt = prompt_of(body)
    told = re.search(r"\b(die|sleep|status|hang|sick|cut)\b ?([\d.]*)", prompt) if options.obey else None
    word, number = (told[1], float(told[2] or 0)) if told else ("", 0.0)
    if word == "die":
        crash()
    if word == "sick":
        sick = True
    if word == "hang":
        await asyncio.sleep(5)
    if options.delay or word == "sleep":
        await asyncio.sleep(options.delay + (number if word == "sleep" else 0))
    failed = dice.random() < options.error_rate
    if word == "status" or failed:
        status = 500 if failed else int(number)
        await respond(send, status, {"error": {"message": "as you wish", "type": "t", "param": None, "code": None}})
        return
    if path == "/v1/embeddings":
        if options.vectors:
            await respond(send, 200, options.vectors.encode())
            return
        given = body["input"] if isinstance(body["input"], list) else [body["input"]]
        rows = [{"object": "embedding", "index": at, "embedding": vector(text)} for at, text in enumerate(given)]
        await respond(send, 200, {"object": "list", "data": rows, "model": body["model"]})
        return
    text = text_for(prompt)
    if body.get("stream"):
        await stream(send, body, text, word == "cut")
        return
    written = len(text.split())
    usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": written}
    choice = {"index": 0, "finish_reason": "stop", "logprobs": None}
    choice |= {"text": text} if path == "/v1/completions" else {"message": {"role": "assistant", "content": text}}
    kind = "text_completion" if path == "/v1/completions" else "chat.completion"
    whole = {"id": "chatcmpl-1", "object": kind, "created": 1, "model": body["model"], "choices": [choice]}
    await respond(send, 200, {**whole, "usage": {**usage, "total_tokens": sum(usage.values())}})


def vector(text: str) -> list[float]:
    """Letters counted: the same letters in another order are the same."""
    row = [0.0] * 26
    for letter in text.lower():
        if "a" <= letter <= "z":
            row[ord(letter) - 97] += 1.0
    return row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="mock")
    parser.add_argument("--digest", default="")
    parser.add_argument("--say", default="")
    parser.add_argument("--vectors", default="", help="what is answered where vectors are asked for")
    parser.add_argument("--mixed", default="", help="a word in the middle of what is natural")
    for name in ("--delay", "--error-rate", "--hello-s", "--token-s", "--start-s"):
        parser.add_argument(name, type=float, default=0.0)
    for name in (
        "--gibberish",
        "--empty",
        "--natural",
        "--record",
        "--obey",
        "--compress",
        "--dead-on-start",
        "--done-on-start",
    ):
        parser.add_argument(name, action="store_true")
    parser.parse_args(namespace=options)
    if options.dead_on_start:
        sys.exit("this one does not start")
    if options.done_on_start:
        sys.exit(0)
    time.sleep(options.start_s)
    told = {"model": options.model, "digest": options.digest}
    serve(
        app,
        listen(port=0),
        config=ServeConfig(max_connections=4000),
        on_ready=lambda url: print(json.dumps({"url": f"{url}/v1", **told}), flush=True),
    )


if __name__ == "__main__":
    main()
