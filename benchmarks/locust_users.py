"""Users for Locust: most ask now and then, some ask more than their limit. Started by `locust_gateway.py`.

Keys come from the file that `CATENA_LOCUST_KEYS` names. A 429 is no failure where it is meant to be: for the greedy,
with a `Retry-After`. Everything else that is not a whole answer is one.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

from locust import FastHttpUser, between, constant_pacing, task

KEYS = json.loads(Path(os.environ["CATENA_LOCUST_KEYS"]).read_text())
TEXTS = [
    "Where is my parcel, and when does it come?",
    "How do I move a file to another folder?",
    "请问明天的航班几点起飞？",
    "Write two sentences about bread.",
]


class Asking(FastHttpUser):
    """What all users do."""

    abstract = True
    keys: tuple[str, ...] = ()
    limited = False
    connection_timeout = 60.0
    network_timeout = 60.0

    def on_start(self) -> None:
        """Take a key."""
        self.head = {"authorization": f"Bearer {random.choice(self.keys)}"}
        self.last = ""

    @task(20)
    def ask(self) -> None:
        """Ask for a whole answer, or for a stream."""
        stream = random.random() < 0.5
        body = {"model": "m", "messages": [{"role": "user", "content": random.choice(TEXTS)}], "stream": stream}
        name = "stream" if stream else "whole"
        with self.client.post(
            "/v1/chat/completions", json=body, headers=self.head, catch_response=True, name=name
        ) as response:
            if response.status_code == 429 and self.limited and response.headers.get("retry-after"):
                response.request_meta["name"] = "429, intended"
                response.success()
            elif response.status_code != 200:
                response.failure(f"{response.status_code}: {(response.text or '')[:100]}")
            elif stream and not response.content.endswith(b"data: [DONE]\n\n"):
                response.failure("the stream did not end")
            else:
                self.last = response.headers.get("x-request-id", "")

    @task(1)
    def rate(self) -> None:
        """Say something of the last answer."""
        if self.last:
            body = {"request_id": self.last, "rating": random.choice(["up", "down"]), "consent": True}
            self.client.post("/v1/feedback", json=body, headers=self.head, name="feedback")


class Ordinary(Asking):
    """Asks every few seconds."""

    weight = 19
    keys = tuple(KEYS["ordinary"])
    wait_time = between(4, 12)


class Greedy(Asking):
    """Asks more than its key may."""

    weight = 1
    keys = tuple(KEYS["greedy"])
    limited = True
    wait_time = constant_pacing(2)
