"""Heads: what a model says at its end. Which one a folder has, and a new one on the body of any folder.

    causal    the next token             masked   the tokens under a mask        seq2seq   a text for a text
    sequence  one label for a text       token    a label for each token

The class of each head is that of `transformers`, so that what is trained here loads there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from catena.core.errors import DataError, UsageError

Head = Literal["causal", "masked", "seq2seq", "sequence", "token"]

CLASSES: dict[Head, Any] = {
    "causal": AutoModelForCausalLM,
    "masked": AutoModelForMaskedLM,
    "seq2seq": AutoModelForSeq2SeqLM,
    "sequence": AutoModelForSequenceClassification,
    "token": AutoModelForTokenClassification,
}
ENDINGS: dict[str, Head] = {
    "ForCausalLM": "causal",
    "LMHeadModel": "causal",
    "ForMaskedLM": "masked",
    "ForPreTraining": "masked",
    "ForConditionalGeneration": "seq2seq",
    "ForSequenceClassification": "sequence",
    "ForTokenClassification": "token",
}
POOLER = "pooler"
"""A part of BERT's body that masked-language models leave out: new with the head that needs it."""
SHIFTED_POSITIONS = frozenset({"roberta", "xlm-roberta", "camembert", "longformer", "mpnet", "data2vec-text"})
"""Families whose first position is the number of the padding token plus one."""


def head_of(settings: Mapping[str, Any]) -> Head:
    """Return the head that a config.json names; for a body without one, that of its pretraining."""
    for architecture in settings.get("architectures") or ():
        for ending, head in ENDINGS.items():
            if architecture.endswith(ending):
                return head
    kind = settings["model_type"]
    if kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return "seq2seq"
    masked = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and kind not in _DECODERS
    return "masked" if masked else "causal"


_DECODERS = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - frozenset(MODEL_FOR_MASKED_LM_MAPPING_NAMES)


def labels_of(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the labels of a classifier's config.json, in the order of their numbers; empty where it is none."""
    if head_of(settings) not in ("sequence", "token"):
        return ()
    named = {int(number): str(label) for number, label in (settings.get("id2label") or {}).items()}
    return tuple(named[number] for number in sorted(named)) or ("LABEL_0", "LABEL_1")


def context_of(settings: Mapping[str, Any]) -> int:
    """Return the longest sequence in tokens that a config.json allows; 0 where positions are relative and it does not
    say."""
    keys = ("max_position_embeddings", "n_positions", "n_ctx")
    longest = next((settings[key] for key in keys if settings.get(key)), 0)
    if settings.get("model_type") in SHIFTED_POSITIONS:
        pad = settings.get("pad_token_id")
        return int(longest) - (1 if pad is None else int(pad)) - 1
    return int(longest)


def load_dense(
    folder: Path, own: Head, dtype: torch.dtype, *, head: Head | None, labels: Sequence[str] | None, seed: int
) -> Any:
    """Load a folder whose own head is `own` with that head, or with a new one whose weights `seed` decides.

    Raises `DataError` where weights of the body are missing or left over, and for a classifier of other labels.
    """
    config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    wanted = head or own
    if labels is not None:
        _set_labels(config, wanted, own, labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, told = CLASSES[wanted].from_pretrained(
            str(folder),
            config=config,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    missing, unexpected = told["missing_keys"], told["unexpected_keys"]
    if type(model).__name__ not in (config.architectures or ()):
        unexpected = _of_the_body(model, unexpected)  # the rest is the head that it had
        missing = missing if head is None else _of_the_body(model, missing)  # a head is made up only where asked for
    refuse_gaps(folder, missing, unexpected)
    return model


def _set_labels(config: Any, wanted: Head, own: Head, labels: Sequence[str]) -> None:
    if wanted not in ("sequence", "token"):
        raise UsageError(f"labels are for the heads sequence and token, not for {wanted}")
    before = tuple(config.id2label[number] for number in sorted(config.id2label))
    if own == wanted and before != tuple(labels):
        raise DataError(
            f"the model classifies into other labels already ({', '.join(map(str, before[:5]))}, ...)",
            hint="Start from the model that it was made from, or give data with its labels.",
        )
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}


def _of_the_body(model: Any, names: Iterable[str]) -> set[str]:
    """Return the weights that belong to the model's body, whatever prefix they have in the file."""
    prefix = f"{model.base_model_prefix}."
    parts = {name for name, _ in model.base_model.named_children()} - {POOLER}
    return {name for name in names if name.removeprefix(prefix).partition(".")[0] in parts}


def refuse_gaps(folder: Path, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Raise `DataError` where weights are missing or left over."""
    for what, names in (("lacks", set(missing)), ("does not know", set(unexpected))):
        if names:
            raise DataError(
                f"the model in {folder} {what} {len(names)} of the weights, for example {min(names)}",
                hint="config.json and the weights do not belong together, or a file is missing.",
            )
