"""A parameter server: one process holds weights and optimizer, and all send it gradients without waiting in step.

    worker r    forward, backward -> push (its clock, its gradient) ............ -> weights -> next step
    server                           step the optimizer, wait until nobody is    -> answer
                                     more than `staleness` steps behind

Bounded staleness (SSP, Ho et al., NeurIPS 2013): 0 is lockstep, a large number is asynchronous SGD. For machines of
unequal speed; a training on it is not repeatable to the bit. The server is a thread of the main process. A message is a
length, a JSON header, and safetensors: nothing that comes over the wire is run.
"""

from __future__ import annotations

import copy
import hmac
import json
import os
import socket
import struct
import threading
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.distributed.distributed_c10d import Store

from catena.train.batches import Batch
from catena.train.optim import make_optimizer
from catena.train.parallel import rendezvous
from catena.train.parallel.contract import ProcessLost, token_of_environment, world_of_environment
from catena.train.parallel.strategy import Objective, Piece, Strategy
from catena.train.precision import precision
from catena.train.settings import TrainConfig

LARGEST_HEADER = 4096


def send(connection: socket.socket, header: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> int:
    """Send one message; returns its bytes."""
    told = json.dumps(dict(header)).encode()
    body = save({name: tensor.contiguous() for name, tensor in tensors.items()}) if tensors else b""
    connection.sendall(struct.pack("!IQ", len(told), len(body)) + told + body)
    return len(told) + len(body)


def receive(connection: socket.socket, most: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Receive one message of at most `most` bytes of tensors. Raises `ConnectionError` where the other side is gone."""
    told, body = struct.unpack("!IQ", _exactly(connection, 12))
    if told > LARGEST_HEADER or body > most:
        raise ConnectionError("a message is longer than any of ours")
    header: dict[str, Any] = json.loads(_exactly(connection, told))
    return header, load(_exactly(connection, body)) if body else {}


def _exactly(connection: socket.socket, size: int) -> bytes:
    held = bytearray(size)
    view = memoryview(held)
    while view:
        read = connection.recv_into(view)
        if not read:
            raise ConnectionError("the other side has closed")
        view = view[read:]
    return bytes(held)


class Server:
    """Weights and optimizer, stepped by whoever sends a gradient."""

    def __init__(self, model: nn.Module, config: TrainConfig, host: str, workers: int, token: str) -> None:
        self.model, self.optimizer = model, make_optimizer(model, config)
        self.weights = {name: held for name, held in model.named_parameters() if held.requires_grad}
        self.most = 2 * sum(held.numel() * held.element_size() for held in self.weights.values()) + 2**20
        self.staleness, self.workers, self._token = config.parallel.staleness, workers, token
        self.lead = 0
        """The most steps that a process was ahead of the slowest when it was let go on."""
        self.lock = threading.Condition()
        self._clocks: dict[int, int] = {}
        self._ended: set[int] = set()
        self._patience_s = config.parallel.patience_s
        self._socket = socket.create_server((host, 0))
        self.address: tuple[str, int] = (host, self._socket.getsockname()[1])
        threading.Thread(target=self._accept, name="parameter server", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        rank: int | None = None
        try:
            with connection:
                hello, _ = receive(connection, 0)
                if not hmac.compare_digest(str(hello["token"]), self._token):
                    return
                rank = int(hello["rank"])
                with self.lock:
                    self._clocks[rank] = 0
                    self.lock.notify_all()
                while True:
                    self._answer(connection, rank)
        except (ConnectionError, ValueError, KeyError):
            return  # gone, or none of ours
        finally:
            with self.lock:
                if rank is not None:
                    self._ended.add(rank)
                self.lock.notify_all()

    def _answer(self, connection: socket.socket, rank: int) -> None:
        header, gradients = receive(connection, self.most)
        with self.lock:
            if gradients:
                self._step(gradients, float(header["rate"]))
            clock = self._clocks[rank] = int(header["clock"])
            if not self.lock.wait_for(lambda: self._may_go_on(clock), self._patience_s):
                raise ConnectionError("the others have stopped")
            self.lead = max(self.lead, clock - self._slowest(clock))
            weights = {name: held.detach().clone() for name, held in self.weights.items()}
        send(connection, {"clock": clock}, weights)

    def _may_go_on(self, clock: int) -> bool:
        self.lock.notify_all()
        return len(self._clocks) == self.workers and clock - self._slowest(clock) <= self.staleness

    def _slowest(self, clock: int) -> int:
        return min((held for rank, held in self._clocks.items() if rank not in self._ended), default=clock)

    def _step(self, gradients: Mapping[str, Tensor], rate: float) -> None:
        for name, held in self.weights.items():
            held.grad = gradients[name].to(held.device)
        for group in self.optimizer.param_groups:
            # All of them together go as far in one step as one process would.
            group["lr"] = rate / self.workers
        self.optimizer.step()

    def wait(self) -> None:
        """Wait until all but the process of the server itself have ended. Raises `ProcessLost` where one does not."""
        with self.lock:
            if not self.lock.wait_for(lambda: len(self._ended | {0}) >= self.workers, self._patience_s):
                left = sorted(set(range(1, self.workers)) - self._ended)
                raise ProcessLost(
                    f"processes {left} of the training have not ended within {self._patience_s:.0f} s of the main one",
                    hint="Look at what they said. The same command goes on from the last checkpoint.",
                )

    def close(self) -> None:
        """Take no more connections."""
        self._socket.close()


class Served(torch.optim.Optimizer):
    """What a worker steps in place of an optimizer: it sends its gradient and takes the weights that come back."""

    def __init__(self, model: nn.Module, connection: socket.socket, most: int, strategy: Strategy) -> None:
        self._weights = {name: held for name, held in model.named_parameters() if held.requires_grad}
        self._connection, self._most, self._strategy, self._clock = connection, most, strategy, 0
        super().__init__(list(self._weights.values()), {"lr": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Send the gradient; returns when the server lets this process go on."""
        self._clock += 1
        self.pull({name: held.grad if held.grad is not None else held * 0 for name, held in self._weights.items()})

    @torch.no_grad()
    def pull(self, gradients: Mapping[str, Tensor] | None = None) -> None:
        """Send a gradient, if any, and take the weights."""
        try:
            header = {"clock": self._clock, "rate": self.param_groups[0]["lr"]}
            self._strategy.wire.bytes += send(self._connection, header, gradients)
            _, weights = receive(self._connection, self._most)
        except OSError as error:
            raise ProcessLost(
                "the parameter server is gone", hint="Look at what the main process said; the same command goes on."
            ) from error
        for name, held in self._weights.items():
            held.copy_(weights[name])


class ByServer(Strategy):
    """One of several processes that train through a parameter server. The main one holds it."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self.rank, self.workers = world_of_environment()
        self.server: Server | None = None
        self._connection: socket.socket | None = None
        self._begun = False

    def place(self, model: Any) -> Any:
        """Start the server (on the main process) and meet it."""
        model = model.to(self.device).train()
        token, patience_s = token_of_environment(), self.config.parallel.patience_s
        self._store = rendezvous.store(patience_s)
        if self.main:
            host = os.environ["MASTER_ADDR"]
            self.server = Server(copy.deepcopy(model), self.config, host, self.workers, token)
            self._store.set("server", json.dumps(self.server.address))
        self._connection = _connect(self._store, patience_s)
        send(self._connection, {"token": token, "rank": self.rank})
        return model

    def optimizer(self, model: Any) -> torch.optim.Optimizer:
        """Return what sends gradients to the server."""
        assert self._connection is not None
        most = 2 * sum(held.numel() * held.element_size() for held in model.parameters()) + 2**20
        self._served = Served(model, self._connection, most, self)
        # Its states are never stepped; a checkpoint is read into them where this process is not the main one.
        self._spare = make_optimizer(model, self.config)
        return self._served

    def backward(self, model: Any, batch: Batch, objective: Objective, micro_batch_size: int) -> float:
        """Add the gradient of the mean loss of this process's rows; returns that mean."""
        if not self._begun:
            self._begun = True
            self._served.pull()
        share, total = batch.share(self.rank, self.workers), 0.0
        for piece in share.pieces(micro_batch_size):
            if piece.learnt:
                with precision(self.config, self.device):
                    loss = objective(model, piece.to(self.device)) / share.learnt
                loss.backward()  # type: ignore[no-untyped-call]
                total += float(loss.detach())
        return total

    def pieces(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Piece]:
        """Return the server's weights and states; on the other processes their own, which nobody reads."""
        if self.server is None:
            return super().pieces(model, self._spare)
        with self.server.lock:
            return super().pieces(self.server.model, self.server.optimizer)

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on the main process; the others write no checkpoints and never wait."""
        return flag and self.main

    def gather(self, model: Any) -> Any:
        """Wait for the others to end, and return the server's weights."""
        if self.server is None:
            return model
        self.server.wait()
        with torch.no_grad():
            for name, held in model.named_parameters():
                if name in self.server.weights:
                    held.copy_(self.server.weights[name])
        return model.to("cpu").eval()

    def close(self) -> None:
        """Leave the server, and on the main process end it."""
        if self._connection is not None:
            self._connection.close()
        if self.server is not None:
            self.server.close()


def _connect(store: Store, patience_s: float) -> socket.socket:
    """Connect to the server at the address that it left in the store."""
    try:
        host, port = json.loads(store.get("server"))
        connection = socket.create_connection((host, port), timeout=patience_s)
    except (RuntimeError, OSError) as error:
        raise ProcessLost(
            f"no parameter server answered within {patience_s:.0f} s", hint="Look at what the main process said."
        ) from error
    # The server itself waits as long for the slowest of all before it answers.
    connection.settimeout(2 * patience_s)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection
