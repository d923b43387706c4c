"""An engine that only pretends, for tests of how engines are started, watched and spoken to. Standard library only.

It takes the command lines of vLLM, SGLang, LMDeploy, llama.cpp and OpenVINO's server as far as it must (--port), and
answers each in its own form: the tokens of the prompt again, one by one, and then from the front, `FAKE_PAUSE` seconds
apart. What it does wrong is said by the environment: FAKE=crash-at-start, port-taken, slow, deaf, hang, die, cut,
nonsense, full, refuse.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAKE = os.environ.get("FAKE", "")
PAUSE = float(os.environ.get("FAKE_PAUSE", "0"))
DIE_AFTER = 3
COUNTS = {"posts": 0, "broken": 0}


def logprob(id: int) -> float:
    """Give every token another log-probability."""
    return -0.5 - id / 1000


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Health, models, and what was counted."""
        if self.path in ("/health", "/health_generate", "/v2/health/ready"):
            while FAKE == "deaf" and COUNTS["posts"]:
                time.sleep(0.1)
            self.reply(200, {})
        elif self.path == "/v1/models":
            self.reply(200, {"data": [{"id": "fake", "max_model_len": 64}]})
        else:
            self.reply(200 if self.path == "/counts" else 404, COUNTS)

    def do_POST(self) -> None:
        """Answer a prompt."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        COUNTS["posts"] += 1
        if FAKE == "full" and COUNTS["posts"] < 3:
            self.reply(503, {"error": {"message": "no room"}}, {"retry-after": "0"})
        elif FAKE == "refuse":
            self.reply(400, {"error": {"message": "never heard of it", "code": 400}})
        elif FAKE == "nonsense":
            self.reply(200, ["what?"])
        elif not body.get("stream"):
            self.reply(200, self.whole(body))
        else:
            self.stream(body)

    @property
    def route(self) -> str:
        """The path, by its usual name: OpenVINO's server has OpenAI's under /v3."""
        return self.path.replace("/v3/", "/v1/", 1)

    def stream(self, body: dict[str, Any]) -> None:
        """Send an answer event by event, as far as it gets."""
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        try:
            for number, event in enumerate(self.events(body)):
                if FAKE == "hang" and number == DIE_AFTER:
                    time.sleep(3600)
                if FAKE == "die" and number == DIE_AFTER:
                    print("CUDA error: an illegal memory access was encountered", file=sys.stderr, flush=True)
                    os.kill(os.getpid(), signal.SIGABRT)
                    time.sleep(3600)
                if FAKE == "cut" and number == DIE_AFTER:
                    break
                self.wfile.write(b": ping\n\ndata: " + json.dumps(event).encode() + b"\n\n")
                self.wfile.flush()
                time.sleep(PAUSE)
            else:
                self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            COUNTS["broken"] += 1
        self.close_connection = True

    def reply(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        """Send JSON."""
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def tokens(self, body: dict[str, Any]) -> tuple[list[int], list[int]]:
        """Return the prompt and the answer."""
        prompt = body.get("prompt") or body.get("input_ids") or [7, 8, 9]
        if isinstance(prompt, str):
            prompt = [ord(one) for one in prompt]
        sampling = body.get("sampling_params") or {}
        most = body.get("max_tokens") or body.get("n_predict") or sampling.get("max_new_tokens") or 0
        return prompt, [prompt[at % len(prompt)] for at in range(most)]

    def events(self, body: dict[str, Any]) -> Any:
        """Give the events of a streamed answer."""
        prompt, answer = self.tokens(body)
        for at, id in enumerate(answer):
            last = at == len(answer) - 1
            if self.route == "/v1/completions":
                yield {"choices": [self.choice(body, [id], "length" if last else None)]}
            elif self.route == "/v1/chat/completions":
                yield {"choices": [{"delta": {"content": f"{id} "}, "finish_reason": "length" if last else None}]}
            elif self.path == "/completion":
                yield {"content": f"{id} ", "tokens": [id], "stop": False, "tokens_predicted": at + 1}
            else:
                yield self.generated(body, prompt, answer[: at + 1], last)
        if self.path == "/completion":
            yield {"content": "", "tokens": [], "stop": True, "stop_type": "limit", "tokens_predicted": len(answer)}
        elif self.route.startswith("/v1/"):
            yield {"choices": [], "usage": {"prompt_tokens": len(prompt), "completion_tokens": len(answer)}}

    def choice(self, body: dict[str, Any], ids: list[int], finish: str | None) -> dict[str, Any]:
        """Return a choice of vLLM's completions."""
        told = None
        if body.get("logprobs") is not None:
            names = [f"token_id:{id}" for id in ids]
            told = {
                "tokens": names,
                "token_logprobs": [logprob(id) for id in ids],
                "top_logprobs": [{f"token_id:{id}": logprob(id), "token_id:1": -9.0} for id in ids],
            }
        return {"text": "?", "token_ids": ids, "logprobs": told, "finish_reason": finish}

    def generated(self, body: dict[str, Any], prompt: list[int], so_far: list[int], last: bool) -> dict[str, Any]:
        """Return an event of SGLang: all so far; or of LMDeploy, whose parameters lie flat: what is new."""
        ids = so_far if "sampling_params" in body else so_far[-1:]
        meta: dict[str, Any] = {"finish_reason": {"type": "length"} if last else None, "prompt_tokens": len(prompt)}
        if body.get("return_logprob"):
            meta["output_token_logprobs"] = [[logprob(id), id, None] for id in ids]
            if "sampling_params" in body:
                meta["output_top_logprobs"] = [[[logprob(id), id, None], [-9.0, 1, None]] for id in ids]
        if body.get("logprob_start_len") == 0:
            meta["input_token_logprobs"] = [[None, prompt[0], None], *([logprob(id), id, None] for id in prompt[1:])]
        return {"text": "?" * len(ids), "output_ids": ids, "meta_info": meta}

    def whole(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return an answer that is not streamed."""
        prompt, answer = self.tokens(body)
        if self.path == "/completion":
            return {
                "content": "?",
                "tokens": answer,
                "stop": True,
                "stop_type": "limit",
                "tokens_evaluated": len(prompt),
            }
        if self.path == "/generate":
            if "sampling_params" not in body:
                event = self.generated({**body, "sampling_params": {}}, prompt, answer, True)
                return {**event, "meta_info": {**event["meta_info"], "output_top_logprobs": None}}
            return self.generated(body, prompt, answer, True)
        choice = self.choice(body, answer, "length")
        if body.get("prompt_logprobs") is not None:
            choice["prompt_logprobs"] = [None, *({str(id): {"logprob": logprob(id)}} for id in prompt[1:])]
        if body.get("echo"):
            choice["logprobs"] = {"token_logprobs": [None, *(logprob(id) for id in prompt[1:])]}
        return {"choices": [choice], "usage": {"prompt_tokens": len(prompt), "completion_tokens": len(answer)}}


def main() -> None:
    """Start as the environment says."""
    if FAKE == "crash-at-start":
        print("loading weights", flush=True)
        sys.exit("torch.OutOfMemoryError: CUDA out of memory")
    if FAKE == "slow":
        time.sleep(1.0)
    port = int(
        next(sys.argv[at + 1] for at, one in enumerate(sys.argv) if one in ("--port", "--server-port", "--rest_port"))
    )
    marker = os.environ.get("FAKE_ONCE")
    if marker and not os.path.exists(marker):  # noqa: PTH110
        open(marker, "w").close()  # noqa: PTH123
        sys.exit(f"OSError: [Errno 98] Address already in use: {port}")
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    print(" ".join(sys.argv[1:]), flush=True)

    def stop(*_: object) -> None:
        if FAKE != "stubborn":
            threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, stop)
    server.serve_forever(0.05)


if __name__ == "__main__":
    main()
