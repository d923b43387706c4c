"""Tokenizers: byte-level BPE, trained here, saved as a folder that plain `transformers` loads. Text to ids and back.

How text is cut before merges are learnt:

    spaces    one space is put before every text and taken off when it is decoded, so that a word has the same token at
              the beginning of a text as in the middle; a space belongs to the word after it
    digits    each is a token of its own
    words     runs of letters of any script; ending marks and line ends stay apart ("words", the pattern of Qwen2)
    names     identifiers with their dots (`os.path.join`) may become one token; Han, kana and hangul are cut into
              characters ("names": for small models that learn about named things)

Bytes are the base alphabet, so any text comes back exactly: Chinese, emoji, tabs, code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from catena.core.errors import DataError, NotFound

PAD, END, USER, ASSISTANT, SYSTEM = SPECIAL = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
UNKNOWN = "<|unknown|>"
"""Stands for a character that a vocabulary of characters lacks; one of bytes lacks none."""
SMALLEST_VOCABULARY = 256 + len(SPECIAL)

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{- raise_exception('the role ' + message['role'] + ' is not system, user or assistant') -}}"
    "{%- endif -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)

Pattern = Literal["words", "names"]
CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
PATTERNS: dict[Pattern, str] = {
    "words": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "names": (
        rf"[{CJK}]| ?[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*| ?[^\W\d_{CJK}]+| ?\p{{N}}"
        r"| ?[^\s\w]|\s*[\r\n]+|\s+(?!\S)|\s+|."
    ),
}


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, *, pattern: Pattern = "words", min_frequency: int = 2, context: int = 0
) -> Any:
    """Learn a byte-level BPE vocabulary of at most `vocab_size` tokens; the result is a `PreTrainedTokenizerFast`.

    `context` is the longest sequence that its models take (0: not said). Equal texts give an equal vocabulary.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERNS[pattern]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=max(vocab_size, SMALLEST_VOCABULARY),
        min_frequency=min_frequency,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrapped(tokenizer, **({"model_max_length": context} if context else {}))


def train_character_tokenizer(texts: Iterable[str]) -> Any:
    """Make a vocabulary of the characters in `texts`, for small models and yardsticks; others become `UNKNOWN`.

    Equal sets of characters give an equal vocabulary, in the order of their code points.
    """
    characters = sorted(set().union(*texts))
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, UNKNOWN, *characters))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([*SPECIAL, UNKNOWN])
    return _wrapped(tokenizer, unk_token=UNKNOWN)


def _wrapped(tokenizer: Tokenizer, **settings: Any) -> Any:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT, SYSTEM],
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
        **settings,
    )


def encode_texts(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of each text. A control token that is spelt out in a text stays text: it gains no power."""
    if not texts:
        return []
    encoded = tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the tokenizer's files into `folder`, under the class name that every release of `transformers` knows."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        extra = settings.pop("extra_special_tokens", None)
        if isinstance(extra, list):
            settings["additional_special_tokens"] = extra
    for key in ("backend", "is_local", "local_files_only"):
        settings.pop(key, None)
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def load_tokenizer(folder: Path) -> Any:
    """Load a tokenizer folder; no code from the folder runs. Raises `NotFound` or `DataError`."""
    if not folder.is_dir():
        raise NotFound(f"there is no folder {folder}")
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")):
        raise DataError(f"{folder} holds no tokenizer", hint="A tokenizer folder has tokenizer.json.")
    try:
        return _class_of(folder).from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the Rust parser and the configuration classes raise anything
        raise DataError(f"the tokenizer in {folder} cannot be read: {error}") from error


def _class_of(folder: Path) -> Any:
    """Return the class that loads a folder's tokenizer: the one that the folder names, where it is the plain one.

    `AutoTokenizer` takes Qwen2's own for every model of that family, and it cuts and decodes text in another way.
    """
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    plain = settings.get("tokenizer_class") == "PreTrainedTokenizerFast" and (folder / "tokenizer.json").exists()
    return PreTrainedTokenizerFast if plain else AutoTokenizer
