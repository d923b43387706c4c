"""Stage `train.tokenizer`: documents (and conversations) to a vocabulary. The first step from samples to a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from catena.core.config import Config
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion, ModelVersion
from catena.train.artifacts import license_of, read_split


class TokenizerConfig(Config):
    """How to learn the vocabulary."""

    kind: Literal["bpe", "character"] = "bpe"
    """`bpe`: frequent runs of bytes, whatever the text. `character`: each character that the text has, as in nanoGPT;
    the fields below but `split` are then not looked at."""
    vocab_size: int = Field(default=4096, ge=261, le=1_000_000)
    """Most tokens, the 256 bytes and 5 control tokens among them; little text gives fewer."""
    pattern: Literal["words", "names"] = "words"
    """`words`: for general text. `names`: dotted identifiers may become one token (see catena.models.tokenizer)."""
    min_frequency: int = Field(default=2, ge=1)
    """Times a pair must occur to be merged."""
    split: str = "train"
    """Split that is read; held-out text must not shape the vocabulary."""
    conversation_weight: int = Field(default=1, ge=1, le=100)
    """Times each conversation counts, where the documents are many and the conversations matter more."""


@stage("train.tokenizer")
def tokenizer(
    ctx: Context, cfg: TokenizerConfig, *, source: DatasetVersion, conversations: DatasetVersion | None = None
) -> ModelVersion:
    """Learn a tokenizer with a chat template, of bytes (BPE) or characters, from one split of documents."""
    from catena.models.tokenizer import save_tokenizer, train_character_tokenizer, train_tokenizer

    texts = [sample.text for sample in read_split(ctx, source, cfg.split, "document")]
    if conversations is not None:
        samples = read_split(ctx, conversations, cfg.split, "conversation")
        turns = [message["content"] for sample in samples for message in sample.data["messages"]]
        texts += turns * cfg.conversation_weight

    progress = ctx.progress("read text for the tokenizer", len(texts), "texts")

    def counted() -> Iterator[str]:
        yield from progress.over(texts)

    if cfg.kind == "character":
        trained, architecture = train_character_tokenizer(counted()), "Characters"
    else:
        trained = train_tokenizer(counted(), cfg.vocab_size, pattern=cfg.pattern, min_frequency=cfg.min_frequency)
        architecture = "ByteLevelBPE"
        if len(trained) < cfg.vocab_size:
            ctx.events.log(f"the text gave {len(trained)} tokens; {cfg.vocab_size} were asked for")
    ctx.events.metric("vocabulary", len(trained))
    with ctx.store.temporary_folder() as folder:
        save_tokenizer(trained, folder)
        terms = license_of(source, conversations)
        return ctx.store.put_model(folder, "tokenizer", architecture=architecture, license=terms)
