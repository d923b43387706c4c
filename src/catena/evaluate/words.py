"""Words of texts, and how much two texts have in common: token F1 (SQuAD), ROUGE-N and ROUGE-L (C.-Y. Lin, 2004).

English is cut as Google's `rouge_score` does it without stemming: small letters and digits, the rest is space. Chinese
is cut into characters, words of other scripts stay whole.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

LATIN = re.compile(r"[a-z0-9]+")
CUT: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"s '", "s'"),
    (r" @([-,.])@ ", r"\1"),  # inside of numbers and words
    *((rf" ([{sign}]) ", r"\1 ") for sign in ":;.!?,"),
    (r"\(\s*([^)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r"\"\s*([^\"]*?)\s*\"", r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
    (r"=(?: =)+", lambda found: found[0].replace(" ", "")),  # headings
    (r" ° ", "°"),
    (r" \n", "\n"),
    (r"\n ", "\n"),
    (r" N ", " 1 "),
    (r" 's", "'s"),
)
"""What undoes the cutting of WikiText into words, in this order."""
WIKITEXT = tuple((re.compile(pattern), by) for pattern, by in CUT)
HAN_OR_WORD = re.compile(r"[㐀-鿿豈-﫿぀-ヿ]|[^\W_]+?(?=[㐀-鿿豈-﫿぀-ヿ]|[\W_]|$)")


def words_of(text: str, language: str) -> list[str]:
    """Return the words of a text."""
    return (HAN_OR_WORD if language == "zh" else LATIN).findall(text.lower())


def detokenized(text: str) -> str:
    """Return a text of WikiText as it was before it was cut into words."""
    for pattern, by in WIKITEXT:
        text = pattern.sub(by, text)
    return text


def token_f1(answer: Sequence[str], reference: Sequence[str]) -> float:
    """Return the harmonic mean of precision and recall over words, each counted as often as it stands there."""
    if not answer or not reference:
        return float(list(answer) == list(reference))
    common = sum((Counter(answer) & Counter(reference)).values())
    return f_measure(common, len(answer), len(reference))


def f_measure(common: int, answered: int, wanted: int) -> float:
    """Return 2PR / (P + R) of counts."""
    if not common:
        return 0.0
    precision, recall = common / answered, common / wanted
    return 2 * precision * recall / (precision + recall)


def rouge_n(answer: Sequence[str], reference: Sequence[str], size: int) -> float:
    """Return the F-measure over n-grams."""
    one, other = (
        Counter(tuple(words[at : at + size]) for at in range(len(words) - size + 1)) for words in (answer, reference)
    )
    return f_measure(sum((one & other).values()), max(sum(one.values()), 1), max(sum(other.values()), 1))


def rouge_l(answer: Sequence[str], reference: Sequence[str]) -> float:
    """Return the F-measure of the longest common subsequence."""
    if not answer or not reference:
        return 0.0
    row = [0] * (len(reference) + 1)
    for word in answer:
        before = 0
        for at, other in enumerate(reference, 1):
            above = row[at]
            row[at] = before + 1 if word == other else max(row[at], row[at - 1])
            before = above
    return f_measure(row[-1], len(answer), len(reference))
