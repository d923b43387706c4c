"""The native engine: requests in, answers out, many at once. Read `step` first.

A request's life: `prompt` makes a sequence of it; it lies in the inbox until the next step; the `scheduler` lets it
run; `runner` and `sampler` give it a token a step (`speculative`: more); `text` turns tokens into what may be shown; at
its end it leaves.

Two ways to drive it. `generate` and `score` step in the caller's own thread, so that the same requests make the same
batches and thus the same bits. `submit` starts a background thread that steps as long as there is work. Both may be
used at once: one lock guards the step.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from catena.core.config import parse
from catena.core.errors import EnvironmentProblem, UsageError
from catena.core.generate import Completion, Delta, FinishReason, Request
from catena.infer.ahead import Ahead
from catena.infer.blocks import BlockPool
from catena.infer.capacity import EngineConfig, blocks_and_context, context_of, end_tokens
from catena.infer.codec import ModelCodec
from catena.infer.embed import EmbedsTexts
from catena.infer.linears import form_for, prepare_
from catena.infer.lora import TakesAdapters
from catena.infer.prompt import Prompter
from catena.infer.runner import Output
from catena.infer.sampler import INVALID, Choice, choose
from catena.infer.scheduler import Chunk, Scheduler, Sequence
from catena.infer.speculative import guessable, open_drafter
from catena.infer.text import TextStream
from catena.infer.ticket import Counters, OnDelta, Ticket
from catena.infer.unpaged import runner_for

logger = logging.getLogger(__name__)


class Engine(EmbedsTexts, TakesAdapters):
    """A `Generator` and a `StreamingGenerator` over one model in memory."""

    def __init__(self, model: Any, tokenizer: Any, config: EngineConfig | None = None, draft: Any = None) -> None:
        """`draft` is a model of the same vocabulary that guesses for it, where the config asks for one."""
        self.config = config = config or EngineConfig()
        self.tokenizer = tokenizer
        prepare_(model, short=config.activations == "int8")
        self.runner = runner_for(model)
        self.runner.layout.rounded = config.cache_format == "int8"
        text_config = model.config.get_text_config()
        rows = model.get_input_embeddings().weight.shape[0]
        blocks, context = blocks_and_context(config, context_of(text_config), self.runner.layout.bytes_per_token)
        self.runner.allocate(blocks, config.block_size, context=context, compile_step=config.compile_step)
        self.scheduler = Scheduler(
            BlockPool(blocks, config.block_size),
            max_running=config.max_running,
            token_budget=config.token_budget,
            score_budget=max(1, config.score_bytes // (4 * rows)),
            prefix_cache=config.prefix_cache and self.runner.paged,
        )
        self.ahead = Ahead(self.runner, wanted=config.ahead and config.speculation == "none")
        self.drafter = open_drafter(config, self.runner, draft, blocks)
        self.ends = end_tokens(model, tokenizer)
        self.codec = ModelCodec(tokenizer, rows, self.ends)
        self.prompter = Prompter(tokenizer, context, self.codec, self.runner.adapters.key)
        self._numbers = itertools.count()
        self._counters = Counters()
        self._stepping = threading.Lock()
        self._wake = threading.Condition()  # guards what follows
        self._inbox: deque[Ticket] = deque()
        self._tickets: dict[str, Ticket] = {}
        self._cancelled: set[str] = set()
        self._thread: threading.Thread | None = None
        self._closed, self._guests = False, 0
        self._failure: BaseException | None = None

    # -- one step ----------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Bring every running sequence a token further, or more where guesses are right, and let waiting ones in."""
        began = time.perf_counter()
        self._admit()
        if self.drafter is not None:
            self.drafter.propose([one for one in self.scheduler.running if guessable(one)], self.scheduler)
        landed = self.ahead.land(self.scheduler)
        if landed is not None:
            self._collect(*landed)
        chunks = self.scheduler.schedule() if self.ahead.flight is None else []
        if chunks and not self.ahead.launch(chunks):
            output = self.runner.run(chunks)
            if self.drafter is not None:
                self.drafter.follow(chunks)
            self._collect(chunks, output, choose(output))
        self._counters.seconds += time.perf_counter() - began

    def _admit(self) -> None:
        """Take over what came in since the last step: new requests, and those that nobody wants any more."""
        with self._wake:
            arrived = list(self._inbox)
            self._inbox.clear()
            cancelled, self._cancelled = self._cancelled, set()
        self._counters.requests += len(arrived)
        for ticket in arrived:
            self._counters.prompt_tokens += ticket.sequence.prompt_length
            self.scheduler.add(ticket.sequence)
        for sequence in self.scheduler.remove(cancelled):
            self._counters.cancelled += 1
            self._leave(sequence, "cancelled")
        for sequence in self.scheduler.remove(self.scheduler.overdue(time.monotonic())):
            self._counters.late += 1
            self._leave(sequence, "deadline")

    def _collect(self, chunks: list[Chunk], output: Output, chosen: list[list[Choice]]) -> None:
        """Append the new tokens, hand out text, and see off the finished."""
        self._counters.steps += 1
        for chunk, entries in output.scored:
            chunk.sequence.prompt_logprobs += entries
        ended: dict[str, FinishReason] = {}
        accepted: dict[str, int] = {}
        for chunk, choices in zip(output.sampled, chosen, strict=True):
            sequence = chunk.sequence
            self._counters.guessed += len(chunk.draft)
            for number, choice in enumerate(choices):
                reason = self._append(sequence, choice)
                if reason is not None:
                    ended[sequence.id] = reason
                    break
                if number < len(chunk.draft):
                    if choice.token != chunk.draft[number]:
                        break
                    accepted[sequence.id] = number + 1
            self._counters.guessed_right += accepted.get(sequence.id, 0)
        for chunk in chunks:
            sequence = chunk.sequence
            self.scheduler.advance(chunk, accepted.get(sequence.id, 0))
            if sequence.score and chunk.complete:
                ended[sequence.id] = "stop"
            if sequence.id in ended:
                self.scheduler.finish(sequence)
                self._leave(sequence, ended[sequence.id])

    def _append(self, sequence: Sequence, choice: Choice) -> FinishReason | None:
        """Give a sequence its next token; return why it is finished, or None."""
        token, params = choice.token, sequence.params
        if token == INVALID:
            self._counters.failed += 1
            logger.error("request %s: the model's logits are no numbers, or no token is allowed", sequence.id)
            return "error"
        sequence.tokens.append(token)
        del sequence.draws[:1]
        if choice.logprob is not None:
            sequence.logprobs.append(choice.logprob)
        self._counters.generated_tokens += 1
        ticket = self._tickets[sequence.id]
        if token in params.stop_token_ids or (token in self.ends and not params.ignore_end):
            return "stop"
        if ticket.text is not None:
            text = ticket.text.push(token)
            if text and ticket.submitted:
                self._tell(ticket, ticket.delta(text))
            if ticket.text.stopped:
                return "stop"
        if sequence.matcher is not None and not sequence.matcher.accept(token):
            return "stop"
        return "length" if len(sequence.tokens) >= sequence.limit else None

    def _leave(self, sequence: Sequence, reason: FinishReason) -> None:
        """Tell the one who waits that it is over."""
        self.runner.drop(sequence.id)
        if self.drafter is not None:
            self.drafter.drop(sequence.id)
        with self._wake:
            ticket = self._tickets.pop(sequence.id)
        rest = ticket.text.finish() if ticket.text is not None else ""
        text = self._decode(sequence.generated) if ticket.text is None else ticket.text.text
        self._tell(ticket, ticket.last(rest, text, reason))

    def _tell(self, ticket: Ticket, delta: Delta) -> None:
        try:
            ticket.on_delta(delta)
        except Exception:
            # Whoever listens (a connection that is gone, a closed event loop) must not take the others down.
            logger.warning("request %s: its listener failed; it is cancelled", ticket.sequence.id, exc_info=True)
            self.cancel(ticket.sequence.id)

    def _decode(self, ids: Iterable[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    # -- many requests, in the caller's thread -----------------------------------------------------------------------

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield a completion for each request, as they finish; raises `UsageError` at the first bad request."""
        return self._drive(requests, score=False)

    def score(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield, for each request, the log-probability of every prompt token after the first."""
        return self._drive(requests, score=True)

    def _drive(self, requests: Iterable[Request], *, score: bool) -> Iterator[Completion]:
        done: queue.SimpleQueue[tuple[str, Completion]] = queue.SimpleQueue()
        mine: set[str] = set()
        source = iter(requests)
        try:
            while True:
                # As many in the queue as fit into the next step, and no more: the iterable may be endless.
                for request in itertools.islice(source, 2 * self.config.max_running - len(mine)):
                    mine.add(self._enter_silent(request, score, done))
                if not mine:
                    return
                if self._thread is None:
                    with self._stepping:
                        self._step_or_fail()
                    finished = [done.get() for _ in range(done.qsize())]
                else:
                    finished = [done.get()]
                for key, completion in finished:
                    mine.discard(key)
                    if self._failure is not None:
                        self._refuse()
                    yield completion
        finally:
            for key in mine:
                self.cancel(key)
            if mine and self._thread is None and self._failure is None:
                with self._stepping:
                    self._admit()

    def _enter_silent(self, request: Request, score: bool, done: queue.SimpleQueue[tuple[str, Completion]]) -> str:
        """Queue a request whose answer is wanted whole; return its key."""
        sequence = self.prompter.sequence(request, score=score)
        sequence.id = key = f"{request.id}#{next(self._numbers)}"  # ids of two calls may be the same

        def on_delta(delta: Delta) -> None:
            if delta.completion is not None:
                done.put((key, delta.completion))

        text = TextStream(self._decode, request.params.stop) if request.params.stop and not score else None
        self._enter(Ticket(sequence, request.id, on_delta, text, submitted=False))
        return key

    # -- one request, answered from the engine's own thread ----------------------------------------------------------

    def submit(self, request: Request, on_delta: OnDelta) -> None:
        """Take a request; its deltas come from the engine's thread.

        Raises `UsageError` for a bad request, `EnvironmentProblem` where the queue is full or the engine is stopped.
        """
        self._check_room()  # before the work of tokenizing, and again with the lock held
        sequence = self.prompter.sequence(request)
        ticket = Ticket(sequence, request.id, on_delta, TextStream(self._decode, request.params.stop), submitted=True)
        with self._wake:
            self._check_room()
            self._enter(ticket)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="catena-engine", daemon=True)
                self._thread.start()

    def cancel(self, request_id: str) -> None:
        """Stop a request; its last delta says `cancelled`. Unknown ids are ignored."""
        with self._wake:
            if request_id in self._tickets:
                self._cancelled.add(request_id)
                self._wake.notify_all()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let no step run while the block does, so that it may use the model by itself."""
        with self._wake:
            self._guests += 1  # the thread would take the lock again before anybody else is awake
        try:
            with self._stepping:
                yield
        finally:
            with self._wake:
                self._guests -= 1
                self._wake.notify_all()

    def stats(self) -> Mapping[str, float]:
        """Return counters (names end in `_total`) and gauges."""
        pool = self.scheduler.pool
        with self._wake:
            running, inside = len(self.scheduler.running), len(self._tickets)
        return {
            "alive": float(self._failure is None and not self._closed),
            "paged": float(self.runner.paged),
            "running": running,
            "waiting": max(0, inside - running),
            "context_tokens": self.prompter.context,
            "cache_blocks": pool.total,
            "cache_blocks_used": pool.total - pool.free,
            "preemptions_total": self.scheduler.preemptions,
            "cached_tokens_total": self.scheduler.reused,
            "steps_ahead_total": self.ahead.count,
            **self._counters.stats(),
        }

    def close(self) -> None:
        """End the thread, cancel what is in flight, and free the cache. May be called twice."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        with self._stepping:
            self._abandon("cancelled")
            self.runner.free()

    def _enter(self, ticket: Ticket) -> None:
        with self._wake:
            if self._closed or self._failure is not None:
                self._refuse()
            key = ticket.sequence.id
            if key in self._tickets:
                raise UsageError(f"a request with the id {key!r} is on its way already")
            self._tickets[key] = ticket
            self._inbox.append(ticket)
            self._wake.notify_all()

    def _check_room(self) -> None:
        limit = self.config.max_running + self.config.max_waiting
        if len(self._tickets) >= limit:
            raise EnvironmentProblem(f"the engine is full, with {limit} requests", hint="Try again in a moment.")

    def _work(self) -> None:
        """The background thread: step while there is work; on any error, fail everyone rather than hang."""
        try:
            while self._wait():
                with self._stepping:
                    self._step_or_fail()
        except Exception:
            logger.exception("the engine's thread stopped")

    def _wait(self) -> bool:
        """Sleep until there is something to do; False once the engine is closed."""
        with self._wake:
            while self._guests or not (self._closed or self._inbox or self._cancelled or self._tickets):
                self._wake.wait()
            return not self._closed

    def _step_or_fail(self) -> None:
        if self._closed or self._failure is not None:
            self._refuse()
        try:
            self.step()
        except BaseException as error:
            self._failure = error
            self._abandon("error")
            raise

    def _abandon(self, reason: FinishReason) -> None:
        """Tell everyone in flight that nothing more will come."""
        with self._wake:
            tickets = list(self._tickets.values())
            self._tickets.clear()
            self._inbox.clear()
        self.ahead.flight = None
        self.scheduler.remove([ticket.sequence.id for ticket in tickets])
        for ticket in tickets:
            text = ticket.text.text if ticket.text is not None else ""
            self._tell(ticket, ticket.last("", text, reason))

    def _refuse(self) -> NoReturn:
        if (failure := self._failure) is not None:
            why = f"{type(failure).__name__}: {failure}"
            raise EnvironmentProblem(f"the engine stopped ({why})", hint="Start it again.") from failure
        raise EnvironmentProblem("the engine is closed", hint="Open it again.")


def open_engine(folder: Path, **options: Any) -> Engine:
    """Load a model folder and return an engine over it; `options` are the fields of `EngineConfig`."""
    from catena.models.checkpoint import load

    config = parse(EngineConfig, options, where="engine")
    form = form_for(folder, config.precision, config.device)
    draft = load(Path(config.draft_model), *form)[0] if config.draft_model else None
    return Engine(*load(folder, *form), config, draft)
