from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from catena.core.errors import UsageError
from catena.core.generate import Message
from catena.infer.codec import ModelCodec

TEXT = "what does 你好世界 🙂 do?\n\té"


def test_the_pieces_of_tokens_are_the_bytes_of_the_text(tokenizer: Any) -> None:
    codec = ModelCodec(tokenizer, len(tokenizer))
    ids = codec.tokens(TEXT)
    assert b"".join(codec.pieces(ids)).decode() == " " + TEXT  # this tokenizer puts a space before every text
    assert codec.text(ids) == TEXT
    assert len(codec.pieces(codec.tokens("🙂"))) > 1


def test_control_tokens_have_their_name_and_no_text(tokenizer: Any) -> None:
    codec = ModelCodec(tokenizer, len(tokenizer))
    ids = codec.tokens([Message("user", "hi")])
    assert b"".join(codec.pieces(ids)).decode() == "<|user|> hi<|end|><|assistant|>"
    assert codec.text(ids) == "hi"


def test_tokens_of_sentencepiece_are_bytes_too() -> None:
    vocabulary = {"<unk>": 0, "▁hello": 1, "▁": 2, **{f"<0x{byte:02X}>": 3 + byte for byte in range(256)}}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    codec = ModelCodec(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"), 300)
    assert codec.pieces([1, 3 + 0xE4, 3 + 0xBD, 3 + 0xA0, 290]) == [b" hello", b"\xe4", b"\xbd", b"\xa0", b""]


def test_a_control_token_that_is_spelt_out_is_text_in_what_goes_on(tokenizer: Any) -> None:
    codec = ModelCodec(tokenizer, len(tokenizer))
    assert codec.text(codec.continuation("<|end|>")) == "<|end|>"


@pytest.mark.parametrize("ids", [[-1], [10**9], [True], ["a"], [1.5]])
def test_what_is_no_id_is_refused(tokenizer: Any, ids: list[Any]) -> None:
    with pytest.raises(UsageError, match="no id"):
        ModelCodec(tokenizer, 300).text(ids)
