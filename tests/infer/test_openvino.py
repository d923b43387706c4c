"""OpenVINO's model server: a converted folder, and OpenAI's form under /v3. A scripted one stands in for it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from catena.core.errors import UsageError
from catena.core.generate import GENERATORS, Message, Request, SamplingParams
from tests.infer.backends import FAST, deltas_of, folder, program, wait_for

__all__ = ["folder", "program"]  # fixtures


def asked(tokens: int) -> Request:
    return Request("c", [Message("user", "hi")], SamplingParams(max_tokens=tokens))


@pytest.fixture
def converted(folder: Path, tmp_path: Path) -> Path:
    """A folder that looks converted."""
    target = tmp_path / "converted"
    shutil.copytree(folder, target)
    (target / "openvino_model.xml").write_text("<net/>", encoding="utf-8")
    return target


def test_a_conversation_is_answered_and_the_process_ends(converted: Path, program: Path) -> None:
    generator = GENERATORS.load("openvino")(converted, **FAST, program=str(program), device="CPU")
    process = generator.place.process
    assert process is not None
    try:
        found = deltas_of(generator, asked(4))
        last = found[-1].completion
        assert last is not None
        assert last.text == "".join(delta.text for delta in found) == "7 8 9 7 "
        assert (last.finish_reason, last.generated) == ("length", 4)
        with pytest.raises(UsageError, match="top_k"):
            generator.submit(Request("k", "a", SamplingParams(top_k=3)), print)
        words = process.told().split()
        assert words[words.index("--model_path") + 1] == str(converted)
        assert words[words.index("--target_device") + 1] == "CPU"
        assert words[words.index("--rest_bind_address") + 1] == "127.0.0.1"
    finally:
        generator.close()
    wait_for(lambda: not process.alive)


def test_one_that_dies_is_told_with_its_last_words(converted: Path, program: Path) -> None:
    generator = GENERATORS.load("openvino")(converted, **FAST, program=str(program), environment={"FAKE": "die"})
    try:
        last = deltas_of(generator, asked(9))[-1].completion
        assert last is not None
        assert last.finish_reason == "error"
        assert "illegal memory access" in str(last.error)
    finally:
        generator.close()


def test_a_folder_that_is_not_converted_is_refused_with_what_to_do(folder: Path, program: Path) -> None:
    with pytest.raises(UsageError, match="not in OpenVINO's format") as caught:
        GENERATORS.load("openvino")(folder, program=str(program))
    assert "optimum-cli export openvino" in caught.value.hint
