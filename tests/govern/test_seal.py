"""Words sealed outside the audit: what opens, what does not, and what an erasure does to it."""

from __future__ import annotations

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from catena.core.errors import IntegrityError
from catena.govern.audit.forget import erase
from catena.govern.audit.log import Log
from catena.govern.audit.rewrap import rewrap
from catena.govern.config import AuditConfig
from catena.govern.seal import PIECE, Erased, Sealer, is_sealed
from catena.hub.locks import file_lock
from catena.hub.store import Store
from catena.serve.gateway.caching import Cover

CONFIG = AuditConfig()
WORDS = "a private word, 一句私房话".encode()


@pytest.fixture
def sealer(store: Store) -> Sealer:
    return Sealer(store.root, CONFIG)


def erased(root: Path, subject: str) -> None:
    with Log(root, CONFIG) as log:
        erase(log, subject, reason="asked", by="test")


def test_a_value_opens_where_it_belongs_and_nowhere_else(sealer: Sealer) -> None:
    sealed = sealer.seal("ada", WORDS, b"row 1")
    assert is_sealed(sealed)
    assert WORDS not in sealed
    assert sealer.open(sealed, b"row 1") == WORDS
    assert sealer.seal("ada", WORDS, b"row 1") != sealed
    with pytest.raises(IntegrityError):
        sealer.open(sealed, b"row 2")
    for at in range(len(sealed)):
        changed = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
        with pytest.raises(IntegrityError):
            sealer.open(changed, b"row 1")
    for short in (b"", sealed[:10], sealed[:30], sealed[:-1]):
        with pytest.raises(IntegrityError):
            sealer.open(short, b"row 1")


def test_an_erasure_closes_everything_of_its_subject_in_every_process(store: Store, sealer: Sealer) -> None:
    other = Sealer(store.root, CONFIG)
    ada, bob = sealer.seal("ada", WORDS), sealer.seal("bob", WORDS)
    assert other.open(ada) == WORDS
    erased(store.root, "ada")
    for one in (sealer, other, Sealer(store.root, CONFIG)):
        with pytest.raises(Erased):
            one.open(ada)
        assert one.erased(ada[:40])
        assert one.open(bob) == WORDS
    with pytest.raises(Erased):
        sealer.seal("ada", b"the rest of it", like=ada)
    later = sealer.seal("ada", b"she came back")
    assert sealer.open(later) == b"she came back"
    assert sealer.erased(ada)


def test_what_was_sealed_opens_after_the_sealing_key_changed(store: Store, sealer: Sealer) -> None:
    sealed, secret = sealer.seal("ada", WORDS), sealer.secret("keys")
    with Log(store.root, CONFIG) as log:
        rewrap(log, store.root, by="test")
    assert sealer.open(sealed) == WORDS
    fresh = Sealer(store.root, CONFIG)
    assert fresh.open(sealed) == WORDS
    assert fresh.secret("keys") == secret
    assert fresh.secret("other") != secret


def test_only_who_needs_a_first_key_waits_for_who_holds_the_vault(store: Store, sealer: Sealer) -> None:
    sealed, fresh = sealer.seal("ada", WORDS), Sealer(store.root, CONFIG)
    with ThreadPoolExecutor(3) as threads:
        with file_lock(store.root / "audit" / "write.lock"):
            new = threads.submit(fresh.seal, "bob", WORDS)
            assert threads.submit(fresh.open, sealed).result(20) == WORDS
            more = threads.submit(fresh.seal, "ada", b"more").result(20)
            assert not new.done()
        assert fresh.open(new.result(20)) == WORDS
    assert sealer.open(more) == b"more"


def test_an_answer_that_waits_for_a_first_key_holds_up_nobody(store: Store, sealer: Sealer) -> None:
    async def kept() -> bytes:
        with file_lock(store.root / "audit" / "write.lock"):
            putting = asyncio.create_task(Cover(sealer).put("bob", WORDS, b"key"))
            for _ in range(10):
                await asyncio.sleep(0.01)
            assert not putting.done()
        return await asyncio.wait_for(putting, 20)

    assert sealer.open(asyncio.run(kept()), b"key") == WORDS


def test_a_key_that_is_damaged_is_told(store: Store, sealer: Sealer) -> None:
    sealer.seal("ada", WORDS)
    [path] = (store.root / "audit" / "subjects").glob("*/*.*")
    path.write_bytes(bytes(60))
    with pytest.raises(IntegrityError, match="cannot be opened"):
        Sealer(store.root, CONFIG).seal("ada", WORDS)


def test_another_workspaces_words_are_told_from_erased_ones(tmp_path: Path, store: Store, sealer: Sealer) -> None:
    (tmp_path / "other").mkdir()
    elsewhere = Sealer(tmp_path / "other", CONFIG).seal("ada", WORDS)
    with pytest.raises(IntegrityError, match="another workspace") as caught:
        sealer.open(elsewhere)
    assert not isinstance(caught.value, Erased)


def test_where_nobody_is_asked_who_they_are_all_belongs_to_the_system(store: Store) -> None:
    sealer = Sealer(store.root, CONFIG, subjects=False)
    for name in ("a", "b", "c", ""):
        assert sealer.open(sealer.seal(name, WORDS)) == WORDS
    assert len(list((store.root / "audit" / "subjects").glob("*/*.*"))) == 1


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 3 * PIECE + 5])
def test_a_file_comes_back_whole(sealer: Sealer, size: int) -> None:
    data = bytes(number % 251 for number in range(size))
    sealed = filed(sealer, data)
    assert sealer.reader(io.BytesIO(sealed)).read() == data
    if data:
        with pytest.raises(IntegrityError):
            sealer.reader(io.BytesIO(sealed[:-1])).read()


def filed(sealer: Sealer, data: bytes) -> bytes:
    stream = io.BytesIO()
    writer = sealer.writer("ada", stream)
    for at in range(0, len(data), 10_000):
        writer.write(data[at : at + 10_000])
    writer.close()
    assert writer.size == len(data)
    return stream.getvalue()


def test_a_file_that_is_cut_changed_or_in_another_order_does_not_open(store: Store, sealer: Sealer) -> None:
    sealed = filed(sealer, bytes(3 * PIECE + 5))
    head, piece = 35, PIECE + 16
    pieces = [sealed[head + at * piece : head + (at + 1) * piece] for at in range(4)]
    whole = sealed[:head]
    wrong = {
        "cut at a piece": whole + b"".join(pieces[:3]),
        "exchanged": whole + pieces[1] + pieces[0] + pieces[2] + pieces[3],
        "one is missing": whole + pieces[0] + pieces[2] + pieces[3],
        "one is double": whole + pieces[0] + pieces[0] + pieces[1] + pieces[2] + pieces[3],
        "another file's beginning": filed(sealer, b"x")[:head] + b"".join(pieces),
        "nothing but the head": whole,
    }
    for data in wrong.values():
        with pytest.raises(IntegrityError):
            sealer.reader(io.BytesIO(data)).read()
    erased(store.root, "ada")
    with pytest.raises(Erased):
        sealer.reader(io.BytesIO(sealed))
