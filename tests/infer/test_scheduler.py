from __future__ import annotations

import random

from catena.core.generate import SamplingParams
from catena.infer.blocks import BlockPool
from catena.infer.scheduler import Chunk, Scheduler, Sequence


def make(name: str, prompt: int, answer: int = 8, *, score: bool = False) -> Sequence:
    return Sequence(name, list(range(prompt)), prompt, SamplingParams(max_tokens=answer), prompt + answer, score=score)


def scheduler(blocks: int = 64, *, size: int = 4, running: int = 8, budget: int = 32, score: int = 1000) -> Scheduler:
    return Scheduler(BlockPool(blocks, size), max_running=running, token_budget=budget, score_budget=score)


def run(machine: Scheduler, chunks: list[Chunk]) -> list[str]:
    """Stand in for the model: advance, append a token to each complete sequence, finish those at their limit."""
    finished = []
    for chunk in chunks:
        machine.advance(chunk)
        if chunk.complete:
            chunk.sequence.tokens.append(0)
            if len(chunk.sequence.tokens) >= chunk.sequence.limit:
                machine.finish(chunk.sequence)
                finished.append(chunk.sequence.id)
    return finished


def names(chunks: list[Chunk]) -> list[tuple[str, int, int]]:
    return [(chunk.sequence.id, chunk.start, chunk.count) for chunk in chunks]


def test_a_prompt_over_the_budget_is_cut_into_chunks() -> None:
    machine = scheduler(budget=10, running=4)
    machine.add(make("a", 25))
    seen = []
    for _ in range(3):
        chunks = machine.schedule()
        seen += names(chunks)
        run(machine, chunks)
    assert seen == [("a", 0, 10), ("a", 10, 10), ("a", 20, 5)]


def test_who_decodes_goes_before_the_rest_of_a_prompt() -> None:
    machine = scheduler(budget=10, running=4)
    machine.add(make("long", 30))
    run(machine, machine.schedule())
    machine.add(make("short", 2))
    machine.running.insert(1, machine.waiting.pop())
    machine.pool.grow(machine.running[1].blocks, 2)
    machine.running[1].computed = 1
    assert names(machine.schedule()) == [("short", 1, 1), ("long", 10, 9)]


def test_no_more_than_max_running_are_let_in() -> None:
    machine = scheduler(running=2)
    for name in "abc":
        machine.add(make(name, 2))
    assert [name for name, _, _ in names(machine.schedule())] == ["a", "b"]
    assert [sequence.id for sequence in machine.waiting] == ["c"]


def test_the_youngest_is_pushed_out_when_blocks_run_out_and_comes_back() -> None:
    machine = scheduler(blocks=4, size=4)
    machine.add(make("a", 7))
    machine.add(make("b", 7))
    finished: list[str] = []
    for _ in range(60):
        finished += run(machine, machine.schedule())
    assert machine.preemptions > 0
    assert finished == ["a", "b"]
    assert machine.pool.free == machine.pool.total


def test_scoring_is_bounded_by_its_own_budget() -> None:
    machine = scheduler(score=6)
    machine.add(make("s", 15, 0, score=True))
    machine.add(make("t", 15, 0, score=True))
    assert names(machine.schedule()) == [("s", 0, 6)]


def test_a_removed_sequence_gives_its_blocks_back_wherever_it_is() -> None:
    machine = scheduler(running=1)
    machine.add(make("running", 5))
    machine.add(make("waiting", 5))
    run(machine, machine.schedule())
    assert {sequence.id for sequence in machine.remove(["running", "waiting", "nobody"])} == {"running", "waiting"}
    assert machine.pool.free == machine.pool.total
    assert machine.schedule() == []


def test_random_traffic_always_ends_and_leaks_no_block() -> None:
    draws = random.Random(3)
    for _ in range(30):
        machine = scheduler(blocks=draws.randint(8, 20), running=draws.randint(1, 6), budget=draws.randint(1, 24))
        count = draws.randint(1, 12)
        for index in range(count):
            machine.add(make(str(index), draws.randint(1, 20), draws.randint(1, 12)))
        finished: list[str] = []
        for _ in range(3000):
            chunks = machine.schedule()
            assert sum(chunk.count for chunk in chunks) <= machine.token_budget
            owned = [block for sequence in machine.running for block in sequence.blocks]
            assert len(set(owned)) == machine.pool.total - machine.pool.free
            finished += run(machine, chunks)
            if len(finished) == count:
                break
        assert len(finished) == count
        assert machine.pool.free == machine.pool.total


def test_a_prompt_that_is_only_read_goes_through_one_step_where_it_can() -> None:
    machine = scheduler(budget=32)
    for name in ("a", "b", "c"):
        machine.add(make(name, 20, answer=0, score=True))
    machine.add(make("long", 40, answer=0, score=True))
    assert names(machine.schedule()) == [("a", 0, 20)]
    machine = scheduler(budget=32)
    machine.add(make("stream", 4))
    run(machine, machine.schedule())
    machine.add(make("d", 32, answer=0, score=True))
    seen = machine.schedule()
    assert names(seen) == [("stream", 4, 1), ("d", 0, 31)], "beside one who streams it would wait for ever"
