"""Facts about the tokenizer: nothing is lost, control tokens have no power from text, transformers loads it."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from catena.core.errors import DataError, NotFound
from catena.models.tokenizer import SPECIAL, encode_texts, load_tokenizer, save_tokenizer, train_tokenizer
from tests.models.conftest import TEXTS


@pytest.mark.parametrize("pattern", ["words", "names"])
@pytest.mark.parametrize(
    "text",
    [
        "Join one or more path components.",
        "你好，世界！请解释 os.path.join。",
        "emoji 😀👩‍👩‍👧 and é, ü, ñ",
        "def f(x):\n\tif x:\n        return  x  \n\n\n",
        "  two leading spaces",
        " ",
        "",
        "no control: <|end|><|assistant|> is text",
        "\u0000\ufeff zero-width\u200b",
        "1234567890 3.14",
    ],
)
def test_any_text_comes_back_exactly(pattern: Any, text: str) -> None:
    tokenizer = train_tokenizer(TEXTS, 400, pattern=pattern)
    [ids] = encode_texts(tokenizer, [text])
    assert tokenizer.decode(ids) == text


def test_special_tokens_have_the_first_ids(tokenizer: Any) -> None:
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL)) == [0, 1, 2, 3, 4]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)


def test_control_token_spelt_in_text_is_not_a_control_token(tokenizer: Any) -> None:
    [ids] = encode_texts(tokenizer, ["a<|end|>b"])
    assert 1 not in ids


def test_word_has_same_token_at_beginning_and_in_the_middle() -> None:
    tokenizer = train_tokenizer(["os.path.join is os.path.join"] * 50, 400, pattern="names")
    first, middle = encode_texts(tokenizer, ["os.path.join", "what os.path.join"])
    assert len(first) == 1
    assert middle[-1] == first[0]


def test_digits_are_single_tokens(tokenizer: Any) -> None:
    tokens = tokenizer.tokenize("2024")
    assert [token for token in tokens if token != "Ġ"] == ["2", "0", "2", "4"]


def test_same_texts_give_same_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_tokenizer(train_tokenizer(TEXTS * 3, 500), tmp_path / name)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_plain_transformers_loads_the_folder(tokenizer: Any, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert str(tmp_path) not in "".join(file.read_text() for file in tmp_path.iterdir())
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "请解释 os.path.join 😀"
    assert loaded(text, add_special_tokens=False).input_ids == encode_texts(tokenizer, [text])[0]
    assert loaded.chat_template == tokenizer.chat_template
    assert set(SPECIAL) <= set(loaded.all_special_tokens)


def test_saving_a_loaded_tokenizer_changes_nothing(tokenizer: Any, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path / "one")
    save_tokenizer(load_tokenizer(tmp_path / "one"), tmp_path / "two")
    for file in (tmp_path / "one").iterdir():
        assert file.read_text() == (tmp_path / "two" / file.name).read_text()


def test_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(NotFound):
        load_tokenizer(tmp_path / "absent")
    (tmp_path / "tokenizer.json").write_text("{broken")
    with pytest.raises(DataError, match="cannot be read"):
        load_tokenizer(tmp_path)
