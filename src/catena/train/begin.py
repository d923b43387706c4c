"""Where a training of an encoder or an encoder-decoder begins: from scratch with a tokenizer, or from a stored model.

A tokenizer that was learnt here puts no marks round a text. Encoders read `<|begin|> text <|end|>`, with `<|mask|>` for
masked tokens; encoder-decoders read `text <|end|>`. The marks become part of the tokenizer that the model is stored
with, so that plain `transformers` puts them there too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from catena.core.errors import ConfigError, UsageError
from catena.core.stage import Context
from catena.core.types import ModelVersion
from catena.models.presets import Kind, preset as preset_named
from catena.train.artifacts import seed_of

if TYPE_CHECKING:
    from catena.models.heads import Head

BEGIN, MASK, END = "<|begin|>", "<|mask|>", "<|end|>"


class FromScratch(Protocol):
    """What a config says about the model to build."""

    @property
    def preset(self) -> str: ...
    @property
    def context(self) -> int | None: ...


def known_preset(name: str, kind: Kind) -> str:
    """Return the name; raises `ValueError`, for a validator, where it is no preset of that kind."""
    try:
        preset_named(name, kind)
    except ConfigError as error:
        raise ValueError(f"{error.message}. {error.hint}") from error
    return name


def begin(
    ctx: Context, cfg: FromScratch, head: Head, tokenizer: ModelVersion | None, base: ModelVersion | None
) -> tuple[Any, Any]:
    """Return (model, tokenizer): of `base`, or a new model with the vocabulary of `tokenizer`.

    Raises `UsageError` unless exactly one of the two is given.
    """
    from catena.models.checkpoint import load
    from catena.models.presets import build
    from catena.models.tokenizer import load_tokenizer

    if (tokenizer is None) == (base is None):
        raise UsageError(
            "give either a tokenizer, to train from scratch, or a base, to go on from", hint="See --use in the help."
        )
    if base is not None:
        check_base(base)
        return load(ctx.store.checkout(base), head=head, seed=seed_of(ctx))
    assert tokenizer is not None
    if not any(file.path == "tokenizer.json" for file in tokenizer.files):
        raise UsageError(f"{tokenizer.digest[:12]} has no tokenizer", hint="Give the output of train.tokenizer.")
    words = load_tokenizer(ctx.store.checkout(tokenizer))
    mark_texts(words, masked=head == "masked")
    context = cfg.context or preset_named(cfg.preset).context
    words.model_max_length = context
    ids = {"pad_id": words.pad_token_id, "end_id": words.eos_token_id}
    model = build(cfg.preset, len(words), seed_of(ctx), context=context, **ids)
    ctx.events.metric("parameters", sum(parameter.numel() for parameter in model.parameters()))
    return model, words


def check_base(base: ModelVersion) -> None:
    """Raise `UsageError` for a model whose weights cannot be trained: an adapter, or a quantized one."""
    if base.form != "full":
        raise UsageError(
            f"{base.digest[:12]} is of the form {base.form}; only a full model can be trained",
            hint="An adapter becomes one with train.merge.",
        )


def mark_texts(words: Any, *, masked: bool) -> None:
    """Have the tokenizer put its marks round every text, where it puts none yet; with a mask token where asked for."""
    from tokenizers.processors import TemplateProcessing

    if masked and words.mask_token is None:
        words.add_special_tokens({"mask_token": MASK})
    if words.num_special_tokens_to_add():
        return
    end = words.eos_token or END
    if words.eos_token is None:
        words.add_special_tokens({"eos_token": end})
    if masked and words.cls_token is None:
        words.add_special_tokens({"cls_token": BEGIN})
    first = f"{words.cls_token} " if masked else ""
    words.chat_template = None
    words.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{first}$A {end}",
        pair=f"{first}$A {end} $B {end}",
        special_tokens=[
            (token, words.convert_tokens_to_ids(token)) for token in (words.cls_token, end) if token is not None
        ],
    )


def say_counts(ctx: Context, counts: dict[str, int], total: int, what: str) -> None:
    """Tell what was done to samples that did not fit, and to how many."""
    for reason, count in counts.items():
        if count:
            ctx.events.metric(reason, count)
            ctx.events.log(f"{count} of {total} {what}: {reason.replace('_', ' ')}")
