"""Facts about the parameter server: it learns, nobody runs further ahead than allowed, and strangers get nothing."""

from __future__ import annotations

import os
import socket
import threading
from typing import Any

import pytest
import torch

from catena.core.errors import ConfigError
from catena.train.objectives import next_token_loss
from catena.train.parallel.contract import LISTENING, listen, sizes_of
from catena.train.parallel.server import ByServer, receive, send
from catena.train.parallel.settings import ParallelConfig
from catena.train.settings import TrainConfig
from tests.train.parallel_runs import Case, batches, untrained

STEPS = 40


class Team:
    """Two workers as threads of this process, the second slower than the first."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, staleness: int, optimizer: str) -> None:
        self.config = TrainConfig(
            batch_size=6,
            optimizer=optimizer,
            precision="float32",
            device="cpu",
            parallel=ParallelConfig(data="server", staleness=staleness),
        )
        self.rate = 1e-2 if optimizer == "adamw" else 0.2
        self.losses: list[list[float]] = [[], []]
        self.failures: list[BaseException] = []
        with listen() as meeting:
            port = str(meeting.getsockname()[1])
            monkeypatch.setenv(LISTENING, str(os.dup(meeting.fileno())))
        contract = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        self.workers = []
        for rank in range(2):
            for name, value in {**contract, "RANK": str(rank), "CATENA_TRAINING": "word"}.items():
                monkeypatch.setenv(name, value)
            worker = ByServer(self.config, torch.device("cpu"))
            self.workers.append((worker, worker.place(untrained(Case()))))
        server = self.workers[0][0].server
        assert server is not None
        self.server = server

    def train(self) -> Any:
        """Train to the end; returns the model of the main worker."""
        threads = [threading.Thread(target=self._work, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not self.failures
        return self.workers[0][1]

    def _work(self, rank: int) -> None:
        worker, model = self.workers[rank]
        try:
            optimizer = worker.optimizer(model)
            pause = threading.Event()
            for batch in batches(STEPS, False):
                self.losses[rank].append(worker.backward(model, batch, next_token_loss, 0))
                worker.clip(model, 1.0)
                pause.wait(0.005 * rank)
                optimizer.param_groups[0]["lr"] = self.rate
                optimizer.step()
                model.zero_grad(set_to_none=True)
            if rank:
                worker.close()
            else:
                worker.gather(model)
                worker.close()
        except BaseException as error:
            self.failures.append(error)


@pytest.mark.parametrize(("staleness", "optimizer"), [(0, "adamw"), (2, "adamw"), (1000, "sgd")])
def test_two_workers_learn_and_none_runs_too_far_ahead(
    monkeypatch: pytest.MonkeyPatch, staleness: int, optimizer: str
) -> None:
    team = Team(monkeypatch, staleness, optimizer)
    team.train()
    assert team.server.lead <= staleness
    assert team.losses[0][-1] < 0.9 * team.losses[0][0]


def test_who_does_not_know_the_word_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    team = Team(monkeypatch, 0, "adamw")
    address = "127.0.0.1", int(team.server._socket.getsockname()[1])
    with socket.create_connection(address) as stranger:
        send(stranger, {"token": "guess", "rank": 1})
        send(stranger, {"clock": 0, "rate": 0.0})
        with pytest.raises(ConnectionError):
            receive(stranger, 10**9)
    for worker, _ in reversed(team.workers):
        worker.close()


def test_server_is_shared_with_nothing_else() -> None:
    with pytest.raises(ConfigError, match="server with tensor is not offered"):
        sizes_of(ParallelConfig(data="server", tensor=2), 4)
