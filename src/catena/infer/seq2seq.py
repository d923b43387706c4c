"""Encoder-decoder models (translation, summaries) as generators: whole batches, one token of each answer a step.

requests -> batch of sources -> encoder, once -> decoder with a cache of `transformers`' own -> sampler -> text

A batch runs until its last answer is complete; who comes meanwhile is in the next one. Choosing tokens is the engine's
(`sampler`), so that seeds, penalties, log-probabilities and forms mean the same here. Greedy answers equal `generate`
with one beam; beams, and what a generation config forbids (`no_repeat_ngram_size`), are not followed.
"""

from __future__ import annotations

import itertools
import logging
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from pydantic import Field
from torch import Tensor

from catena.core.config import Config, parse
from catena.core.errors import EnvironmentProblem, UsageError
from catena.core.generate import Completion, Delta, FinishReason, Request
from catena.infer.capacity import end_tokens
from catena.infer.codec import ModelCodec
from catena.infer.embed import checked
from catena.infer.grammar import Grammars
from catena.infer.prompt import check_params
from catena.infer.sampler import INVALID, adjust, report, sample
from catena.infer.scheduler import Sequence
from catena.infer.text import TextStream
from catena.infer.ticket import Counters, OnDelta, Ticket
from catena.models.classify import padded, padding_of
from catena.models.heads import context_of

logger = logging.getLogger(__name__)


class Seq2SeqConfig(Config):
    """How much is taken on at once."""

    max_running: int = Field(default=32, ge=1)
    """Most requests in one batch."""
    max_waiting: int = Field(default=256, ge=1)
    """Most submitted requests in the queue; the next is refused at once."""


@dataclass(eq=False, slots=True)
class _Job:
    """A request: what the encoder reads, and the sequence that the decoder writes."""

    source: list[int]
    ticket: Ticket

    @property
    def sequence(self) -> Sequence:
        return self.ticket.sequence


class Seq2Seq:
    """A `Generator` and a `StreamingGenerator` over one encoder-decoder model in memory."""

    def __init__(self, model: Any, tokenizer: Any, config: Seq2SeqConfig | None = None) -> None:
        self.config = config or Seq2SeqConfig()
        self.model = model.eval()
        self.tokenizer = tokenizer
        settings = model.generation_config
        start = settings.decoder_start_token_id
        self.start = int(model.config.decoder_start_token_id if start is None else start)
        self.first = getattr(settings, "forced_bos_token_id", None)
        """The token that every answer begins with: the language, in models that know many."""
        self.context = context_of(model.config.to_dict())
        rows = model.get_output_embeddings().weight.shape[0]
        self.ends = end_tokens(model, tokenizer)
        self.codec = ModelCodec(tokenizer, rows, self.ends)
        self._grammars = Grammars(tokenizer, rows, self.ends)
        self._pad = padding_of(tokenizer)
        self._counters = Counters()
        self._numbers = itertools.count()
        self._running = threading.Lock()
        self._wake = threading.Condition()  # guards what follows
        self._inbox: deque[_Job] = deque()
        self._inside: set[str] = set()
        self._cancelled: set[str] = set()
        self._thread: threading.Thread | None = None
        self._closed = False

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield a completion for each request; raises `UsageError` at the first bad one."""
        source = iter(requests)
        while chunk := list(itertools.islice(source, self.config.max_running)):
            done: queue.SimpleQueue[Completion] = queue.SimpleQueue()

            def on_delta(delta: Delta, done: queue.SimpleQueue[Completion] = done) -> None:
                if delta.completion is not None:
                    done.put(delta.completion)

            self._run([self._job(request, on_delta) for request in chunk])
            for _ in chunk:
                yield done.get()

    def score(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Refuse: what an encoder reads has no probability."""
        raise UsageError("an encoder-decoder model gives no probability to its prompt", hint="Score with a decoder.")

    def submit(self, request: Request, on_delta: OnDelta) -> None:
        """Take a request; its deltas come from a thread of its own."""
        job = self._job(request, on_delta)
        job.sequence.id = request.id
        with self._wake:
            if self._closed:
                self._refuse()
            if request.id in self._inside:
                raise UsageError(f"a request with the id {request.id!r} is on its way already")
            if len(self._inside) >= self.config.max_running + self.config.max_waiting:
                raise EnvironmentProblem("the model's queue is full", hint="Try again in a moment.")
            self._inside.add(request.id)
            self._inbox.append(job)
            self._wake.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="catena-seq2seq", daemon=True)
                self._thread.start()

    def cancel(self, request_id: str) -> None:
        """Stop a request; its last delta says `cancelled`. Unknown ids are ignored."""
        with self._wake:
            if request_id in self._inside:
                self._cancelled.add(request_id)

    def stats(self) -> Mapping[str, float]:
        """Return counters and gauges."""
        with self._wake:
            waiting, inside = len(self._inbox), len(self._inside)
        told = {"alive": float(not self._closed), "running": inside - waiting, "waiting": waiting}
        return told | ({"context_tokens": self.context} if self.context else {}) | self._counters.stats()

    def close(self) -> None:
        """End the thread; what is under way is cancelled. May be called twice."""
        with self._wake:
            self._closed = True
            self._cancelled |= self._inside
            self._wake.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _refuse(self) -> NoReturn:
        raise EnvironmentProblem("the model is closed", hint="Open it again.")

    def _job(self, request: Request, on_delta: OnDelta) -> _Job:
        """Tokenize and check; raises `UsageError` for what the model cannot answer."""
        params = request.params
        check_params(params, self.codec.vocabulary)
        if params.max_tokens < 1 or params.prompt_logprobs is not None:
            raise UsageError("an encoder-decoder model gives no probability to its prompt")
        if request.adapter:
            raise UsageError(f"no adapter {request.adapter!r} is loaded", hint="This model takes none.")
        source = checked(self.codec.tokens(request.prompt, request.tools), self.context)
        room = self.context or params.max_tokens + 1
        if params.max_tokens >= room + (self.context == 0):
            raise UsageError(f"max_tokens is {params.max_tokens}; an answer holds at most {room - 1} tokens")
        sequence = Sequence(
            id=f"{request.id}#{next(self._numbers)}",
            tokens=[self.start],
            prompt_length=1,
            params=params,
            limit=1 + params.max_tokens,
            deadline=None if request.deadline is None else time.monotonic() + request.deadline,
            matcher=self._grammars.matcher(params.grammar) if params.grammar else None,
            random=random.Random(params.seed) if params.seed is not None else random.Random(),
        )
        return _Job(source, Ticket(sequence, request.id, on_delta, TextStream(self.codec.text, params.stop), True))

    def _work(self) -> None:
        """The background thread: a batch after the other."""
        while True:
            with self._wake:
                while not (self._inbox or self._closed):
                    self._wake.wait()
                jobs = [self._inbox.popleft() for _ in range(min(len(self._inbox), self.config.max_running))]
            if not jobs:
                return
            try:
                self._run(jobs)
            except Exception:
                logger.exception("a batch failed")
                for job in jobs:
                    if job.sequence.id in self._inside:
                        self._leave(job, "error")

    @torch.inference_mode()
    def _run(self, jobs: list[_Job]) -> None:
        """Answer a batch of requests."""
        with self._running:
            self._counters.requests += len(jobs)
            self._counters.prompt_tokens += sum(len(job.source) for job in jobs)
            device = next(self.model.parameters()).device
            ids = padded([job.source for job in jobs], self._pad).to(device)
            mask = padded([[1] * len(job.source) for job in jobs], 0).to(device)
            encoded = self.model.get_encoder()(input_ids=ids, attention_mask=mask)
            cache = None
            active = dict(enumerate(jobs))
            while self._still(active):
                last = torch.tensor([[job.sequence.tokens[-1]] for job in jobs], device=device)
                out = self.model(
                    encoder_outputs=encoded,
                    attention_mask=mask,
                    decoder_input_ids=last,
                    past_key_values=cache,
                    use_cache=True,
                )
                cache = out.past_key_values
                self._counters.steps += 1
                self._choose(active, out.logits[:, -1])

    def _still(self, active: dict[int, _Job]) -> bool:
        """Take out whom nobody waits for any more; tell whether anyone is left."""
        with self._wake:
            cancelled = set(self._cancelled)
        now = time.monotonic()
        for row, job in list(active.items()):
            late = job.sequence.deadline is not None and job.sequence.deadline <= now
            if job.sequence.id in cancelled or late:
                self._leave(job, "deadline" if late else "cancelled")
                del active[row]
        return bool(active)

    def _choose(self, active: dict[int, _Job], logits: Tensor) -> None:
        """Give each row its next token from `logits` `[batch, vocabulary]`."""
        rows = list(active)
        sequences = [active[row].sequence for row in rows]
        chosen = logits[rows]
        if self.first is not None and len(sequences[0].tokens) == 1:
            tokens = [int(self.first)] * len(rows)
        else:
            draws = [one.random.random() for one in sequences]
            tokens = sample(adjust(chosen, sequences), [one.params for one in sequences], draws)
        told = [at for at, one in enumerate(sequences) if one.params.logprobs is not None and tokens[at] != INVALID]
        tops = [sequences[at].params.logprobs or 0 for at in told]
        for at, entry in zip(told, report(chosen[told], [tokens[at] for at in told], tops), strict=True):
            sequences[at].logprobs.append(entry)
        for row, token in zip(rows, tokens, strict=True):
            reason = self._append(active[row], token)
            if reason is not None:
                self._leave(active.pop(row), reason)

    def _append(self, job: _Job, token: int) -> FinishReason | None:
        """Give an answer its next token; return why it is finished, or None."""
        sequence, params, text = job.sequence, job.sequence.params, job.ticket.text
        assert text is not None
        if token == INVALID:
            return "error"
        sequence.tokens.append(token)
        self._counters.generated_tokens += 1
        if token in params.stop_token_ids or (token in self.ends and not params.ignore_end):
            return "stop"
        new = text.push(token)
        if new:
            self._tell(job, job.ticket.delta(new))
        if text.stopped or (sequence.matcher is not None and not sequence.matcher.accept(token)):
            return "stop"
        return "length" if len(sequence.tokens) >= sequence.limit else None

    def _leave(self, job: _Job, reason: FinishReason) -> None:
        with self._wake:
            self._inside.discard(job.sequence.id)
            self._cancelled.discard(job.sequence.id)
        assert job.ticket.text is not None
        rest = job.ticket.text.finish()
        delta = job.ticket.last(rest, job.ticket.text.text, reason)
        assert delta.completion is not None
        self._tell(job, replace(delta, completion=replace(delta.completion, prompt_tokens=len(job.source))))

    def _tell(self, job: _Job, delta: Delta) -> None:
        try:
            job.ticket.on_delta(delta)
        except Exception:
            logger.warning("request %s: its listener failed; it is cancelled", job.ticket.request_id, exc_info=True)
            self.cancel(job.sequence.id)


def open_seq2seq(folder: Path, **options: Any) -> Seq2Seq:
    """Load an encoder-decoder's folder and return a generator over it; `options` are fields of `Seq2SeqConfig`."""
    from catena.models.checkpoint import load

    config = parse(Seq2SeqConfig, options, where="seq2seq")
    model, tokenizer = load(folder)
    return Seq2Seq(model, tokenizer, config)
