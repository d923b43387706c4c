"""Texts to vectors of length one, whose product says how alike they are in meaning: by TF-IDF and SVD, or by a model.

The first needs nothing but the texts themselves (latent semantic analysis, Deerwester et al. 1990); the second takes
the mean over a text's tokens of the last hidden states of any model of the store. A text without a word has a vector
of zeros, which is like no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from catena.core.registry import require
from catena.data.words import folded_words

Vectors = npt.NDArray[np.float32]

FEATURES = 1 << 18


def unit(vectors: npt.NDArray[Any]) -> Vectors:
    """Return vectors [texts, dimensions] of length one; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    result: Vectors = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return result


def tfidf_vectors(texts: Iterable[str], dimensions: int, seed: int) -> Vectors:
    """Return vectors [texts, at most `dimensions`] of single words and pairs of words (characters, in CJK text).

    The texts are read once, one after another; what is held is their words' counts.
    """
    text_features = require("sklearn.feature_extraction.text", "data")
    decomposition = require("sklearn.decomposition", "data")
    counter = text_features.TfidfVectorizer(
        tokenizer=folded_words,
        token_pattern=None,
        lowercase=False,
        ngram_range=(1, 2),
        max_features=FEATURES,
        sublinear_tf=True,
        dtype=np.float32,
    )
    # The counter refuses texts without any word; a text with one goes in at the end, and out again.
    counts = counter.fit_transform(chain(texts, ["word"]))[:-1]
    if not counts.shape[0]:
        return np.zeros((0, 1), dtype=np.float32)
    size = min(dimensions, *counts.shape)
    if size == min(counts.shape):  # as many dimensions as there are: nothing to leave out
        return unit(_full_rank(counts))
    reduced = decomposition.TruncatedSVD(n_components=size, random_state=seed).fit_transform(counts)
    return unit(reduced)


def _full_rank(counts: Any) -> npt.NDArray[Any]:
    """Return vectors with the same products as the rows of a small sparse matrix."""
    if counts.shape[1] <= counts.shape[0]:
        dense: npt.NDArray[Any] = counts.toarray()
        return dense
    values, vectors = np.linalg.eigh((counts @ counts.T).toarray().astype(np.float64))
    result: npt.NDArray[Any] = vectors * np.sqrt(np.maximum(values, 0))
    return result


def model_vectors(folder: Path, texts: Iterable[str], max_tokens: int, batch: int) -> Iterator[Vectors]:
    """Yield the vectors of `batch` texts at a time, from a checkpoint folder. Of a long text the beginning counts."""
    import torch

    from catena.models.checkpoint import load

    model, tokenizer = load(folder)
    longest = min(max_tokens, int(getattr(model.config, "max_position_embeddings", max_tokens)))
    waiting = iter(texts)
    while part := list(islice(waiting, batch)):
        with torch.inference_mode():
            yield unit(_pooled(model, tokenizer, part, longest))


def _pooled(model: Any, tokenizer: Any, texts: Sequence[str], longest: int) -> npt.NDArray[Any]:
    import torch

    # What is cut off is cut off as characters first: no token has less than one.
    tokens = [
        tokenizer(text[: longest * 16], truncation=True, max_length=longest)["input_ids"] if folded_words(text) else []
        for text in texts
    ]
    width = max(1, *map(len, tokens))
    ids, mask = torch.zeros((2, len(texts), width), dtype=torch.long)
    for row, found in enumerate(tokens):
        ids[row, : len(found)] = torch.tensor(found, dtype=torch.long)
        mask[row, : len(found)] = 1
    hidden = model.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state.float()
    weights = mask.unsqueeze(-1)
    pooled: npt.NDArray[Any] = ((hidden * weights).sum(1) / weights.sum(1).clamp(min=1)).numpy()
    return pooled
