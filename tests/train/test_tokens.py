"""Facts about token shards: written once, mapped, equal whoever writes them; a kill or damage costs one shard."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catena.core.errors import DataError, EnvironmentProblem
from catena.models.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from catena.train import shards
from catena.train.encode import Encoding, encode_items
from catena.train.overlong import Counts, fit_conversations, fit_document
from catena.train.tokens import Tokens, documents_in_memory
from tests.train.conftest import Recorded, conversation, document

MakeContext = Callable[[str], Recorded]
TEXTS = [document(number) for number in range(40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(TEXTS, 400), made)
    return made


@pytest.fixture(scope="module")
def words(folder: Path) -> Any:
    return load_tokenizer(folder)


def encode(made: Recorded, folder: Path, words: Any, texts: list[str] = TEXTS, facts: str = "these") -> Tokens:
    plan = Encoding(shape="document", tokenizer=str(folder))
    return shards.token_shards(made.context, "train", plan, words, iter(texts), (facts, len(texts)))


def as_lists(tokens: Tokens) -> list[list[int]]:
    return [tokens[row].ids.tolist() for row in range(len(tokens))]


def test_joined_rows_are_read_across_shards() -> None:
    parts = [documents_in_memory([[5, 6], [7]], 1), documents_in_memory([[8, 9, 10]], 1)]
    tokens = Tokens([shard for part in parts for shard in part._shards])
    assert tokens.read(0, 100).tolist() == [5, 6, 1, 7, 1, 8, 9, 10, 1]
    assert tokens.read(4, 3).tolist() == [1, 8, 9]
    assert as_lists(tokens) == [[5, 6, 1], [7, 1], [8, 9, 10, 1]]
    assert (tokens.total, tokens.largest, tokens.lengths.tolist()) == (9, 10, [3, 2, 4])


def test_tokens_are_mapped_from_files_in_two_bytes_each(recorded: MakeContext, folder: Path, words: Any) -> None:
    tokens = encode(recorded("a"), folder, words)
    assert isinstance(tokens._shards[0].tokens, np.memmap)
    assert tokens._shards[0].tokens.dtype == np.uint16
    wanted = words(TEXTS, add_special_tokens=False)["input_ids"]
    assert as_lists(tokens) == [[*ids, words.eos_token_id] for ids in wanted]


def test_second_run_reads_what_the_first_wrote(recorded: MakeContext, folder: Path, words: Any) -> None:
    made = recorded("b")
    first = encode(made, folder, words)
    stamp = (made.context.workdir / "tokens-train" / "00000.tokens.npy").stat().st_mtime_ns
    again = encode(made, folder, words)
    assert as_lists(again) == as_lists(first)
    assert (made.context.workdir / "tokens-train" / "00000.tokens.npy").stat().st_mtime_ns == stamp
    other = encode(made, folder, words, TEXTS[:3], "others")
    assert len(other) == 3


def test_processes_write_the_same_as_one(
    recorded: MakeContext, folder: Path, words: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = encode(recorded("c"), folder, words)
    monkeypatch.setattr(shards, "SHARD_CHARACTERS", 3000)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made = recorded("d")
    many = encode(made, folder, words)
    target = made.context.workdir / "tokens-train"
    assert len(many._shards) > 2
    assert as_lists(many) == as_lists(alone)
    assert not list(target.glob("*.part"))


def test_damaged_shard_is_made_again(recorded: MakeContext, folder: Path, words: Any) -> None:
    made = recorded("h")
    first = as_lists(encode(made, folder, words))
    (made.context.workdir / "tokens-train" / "00000.tokens.npy").write_bytes(b"short")
    assert as_lists(encode(made, folder, words)) == first
    (made.context.workdir / "tokens-train" / "00000.json").write_bytes(b"{")
    assert as_lists(encode(made, folder, words)) == first


def test_problem_of_a_process_is_told_as_if_it_were_ours(
    recorded: MakeContext, folder: Path, words: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_CHARACTERS", 30)
    plan = Encoding(shape="conversation", tokenizer=str(folder), longest=16, overlong="refuse")
    chats = [conversation(number, 1) for number in range(4)]
    with pytest.raises(DataError, match="the model takes 16"):
        shards.token_shards(replace(recorded("e").context, workers=1), "train", plan, words, iter(chats), ("x", 4))


def test_other_processes_wait_for_the_first_without_talking_to_it(
    recorded: MakeContext, folder: Path, words: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recorded("f")
    monkeypatch.setattr(shards, "process_rank", lambda: 0 if threading.current_thread().name == "writer" else 1)
    writer = threading.Timer(0.3, encode, (made, folder, words))
    writer.name = "writer"
    writer.start()
    read = encode(made, folder, words)
    writer.join()
    assert len(read) == 40


def test_process_that_waits_in_vain_says_so(
    recorded: MakeContext, folder: Path, words: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(shards, "GIVE_UP_AFTER_S", 0.2)
    with pytest.raises(EnvironmentProblem, match="process 1 waited"):
        encode(recorded("g"), folder, words)


def test_killed_writer_leaves_whole_shards(folder: Path, words: Any, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(Encoding(shape="document", tokenizer=str(folder)).model_dump_json())
    for number in range(2):
        (tmp_path / f"{number:05d}.part").write_text(json.dumps([number * 20, TEXTS[number * 20 :][:20]]))
    child = subprocess.Popen(
        [sys.executable, "-m", "catena.train.encode", str(tmp_path)],
        stdin=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert child.stdin is not None
    child.stdin.write("0\n")
    child.stdin.flush()
    for _ in range(600):
        if (tmp_path / "00000.json").exists() or child.poll() is not None:
            break
        time.sleep(0.05)
    child.kill()
    child.wait()
    child.stdin.close()
    facts = json.loads((tmp_path / "00000.json").read_text())
    sizes = {name: (tmp_path / f"00000.{name}.npy").stat().st_size for name in facts["files"]}
    assert sizes == facts["files"]
    assert not (tmp_path / "00001.json").exists()


def test_overlong_documents_are_split_so_that_each_token_is_learnt_once(words: Any, folder: Path) -> None:
    counts = Counts()
    pieces = fit_document(list(range(10)), 4, "split", 0, counts)
    assert pieces == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8], [8, 9]]
    assert fit_document([0, 1, 2, 3, 4], 4, "split", 0, counts) == [[0, 1, 2, 3, 4]]
    assert fit_document(list(range(10)), 4, "cut", 1, counts) == [[0, 1, 2, 3, 4]]
    assert fit_document(list(range(10)), 4, "drop", 2, counts) == []
    assert counts == {"split": 1, "cut": 1, "too_long": 1}
    with pytest.raises(DataError, match="document 3 has 10 tokens, the model takes 5"):
        fit_document(list(range(10)), 4, "refuse", 3, counts)
    plan = Encoding(shape="document", tokenizer=str(folder), longest=8, overlong="split")
    shard = encode_items(plan, words, ["", "alpha beta", "gamma " * 50], 7)
    assert shard.counts == {"empty": 1, "split": 1}
    assert sorted(set(shard.samples.tolist())) == [8, 9]
    assert shard.lengths.max() == 9


def chat(words: Any, turns: int) -> list[dict[str, str]]:
    told = [{"role": "system", "content": "be short"}]
    for number in range(turns):
        told += [{"role": "user", "content": f"what is {number}?"}, {"role": "assistant", "content": f"alpha {number}"}]
    return told


def test_overlong_conversations_are_cut_split_dropped_or_refused_and_counted(words: Any) -> None:
    long, short = chat(words, 6), chat(words, 1)
    question = short[:2]
    [_], [whole], _ = fit_conversations([long], words, 10_000, "cut")
    context = len(whole.ids) // 2
    numbers, rows, counts = fit_conversations([short, long, question], words, context, "split", first=5)
    assert counts == {"split": 1, "nothing_to_learn": 1}
    assert numbers[:3] == [5, 6, 6]
    assert all(len(row.ids) <= context for row in rows)
    pieces = [words.decode(row.ids) for row in rows[1:]]
    assert all(piece.startswith("<|system|>") and "<|user|>" in piece for piece in pieces)
    assert sum(piece.count("<|user|>") for piece in pieces) == 6
    assert sum(sum(row.mask) for row in rows[1:]) == sum(whole.mask)
    for policy, told, left in (("cut", "cut", [1]), ("drop", "too_long", [])):
        numbers, rows, counts = fit_conversations([question, long], words, context, policy)  # type: ignore[arg-type]
        assert (numbers, counts) == (left, {told: 1, "nothing_to_learn": 1})
    with pytest.raises(DataError, match=r"conversation 1 has \d+ tokens"):
        fit_conversations([short, long], words, context, "refuse")


def test_exchange_that_is_too_long_alone_is_cut_where_it_cannot_be_split(words: Any) -> None:
    talk = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "because " * 40}]
    numbers, rows, counts = fit_conversations([[*talk, *chat(words, 1)[1:]]], words, 20, "split")
    assert counts == {"split": 1, "cut": 1}
    assert numbers == [0, 0]
    assert [len(row.ids) <= 20 for row in rows] == [True, True]


def test_token_outside_the_vocabulary_is_refused() -> None:
    tokens = documents_in_memory([[5, 99]], 1)
    tokens.check_vocabulary(100)
    with pytest.raises(DataError, match=r"the token 99, the model only 99 tokens \(0 to 98\)"):
        tokens.check_vocabulary(99)


def test_unknown_characters_are_counted(folder: Path, words: Any) -> None:
    class Unknowing:
        """A tokenizer that does not know the letter z."""

        unk_token_id, eos_token_id = 3, 1

        def __len__(self) -> int:
            return 10

        def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
            return {"input_ids": [[3 if letter == "z" else 4 for letter in text] for text in texts]}

    shard = encode_items(Encoding(shape="document", tokenizer=str(folder)), Unknowing(), ["azbz", "ab"], 0)
    assert shard.counts == {"unknown_tokens": 2}
