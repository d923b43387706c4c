"""Rows that need no file: small exercises made from a seed, the same everywhere. A task names a maker (`made: sums`).

Each maker is given a random generator and returns one row; the words are few and plain, in English and Chinese.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

Row = dict[str, Any]
NAMES = ("Ann", "Ben", "Carla", "Deng", "Eva", "Farid", "Grace", "Hugo")
NAMES_ZH = ("小明", "小红", "李华", "王芳", "张伟", "刘洋", "陈静", "赵磊")
THINGS = ("apples", "books", "coins", "pencils", "stamps", "marbles")
THINGS_ZH = ("苹果", "书", "硬币", "铅笔", "邮票", "弹珠")
WORDS = (
    "river",
    "stone",
    "window",
    "garden",
    "paper",
    "silver",
    "morning",
    "bridge",
    "letter",
    "winter",
    "music",
    "cloud",
)
WORDS_ZH = ("河流", "石头", "窗户", "花园", "纸张", "银色", "早晨", "桥梁", "信件", "冬天", "音乐", "云朵")
PLACES = ("kitchen", "attic", "cellar", "garage", "library", "office")
PLACES_ZH = ("厨房", "阁楼", "地下室", "车库", "图书馆", "办公室")


def addition(draw: random.Random) -> Row:
    """Two numbers and their sum or difference."""
    a, b = draw.randint(2, 99), draw.randint(2, 99)
    if draw.random() < 0.5:
        return {"expression": f"{a} + {b}", "answer": a + b}
    return {"expression": f"{max(a, b)} - {min(a, b)}", "answer": abs(a - b)}


def story(draw: random.Random) -> Row:
    """A sum in words, worked out, in both languages."""
    who, what = draw.randrange(len(NAMES)), draw.randrange(len(THINGS))
    have, more, gone = draw.randint(2, 40), draw.randint(2, 40), draw.randint(1, 3)
    left = have + more - gone
    return {
        "question": f"{NAMES[who]} has {have} {THINGS[what]}, gets {more} more and gives {gone} away. "
        f"How many {THINGS[what]} are left?",
        "question_zh": f"{NAMES_ZH[who]}有{have}个{THINGS_ZH[what]}，又得到{more}个，送出{gone}个。"
        f"还剩多少个{THINGS_ZH[what]}？",
        "worked": f"{have} + {more} = {have + more}. {have + more} - {gone} = {left}.\n#### {left}",
        "answer": left,
    }


def copying(draw: random.Random) -> Row:
    """Some words in a row."""
    places = [draw.randrange(len(WORDS)) for _ in range(draw.randint(3, 6))]
    return {"words": " ".join(WORDS[at] for at in places), "words_zh": "".join(WORDS_ZH[at] for at in places)}


def reversing(draw: random.Random) -> Row:
    """Three different words, and the same from the last to the first."""
    places = draw.sample(range(len(WORDS)), 3)
    back = places[::-1]
    return {
        "words": ", ".join(WORDS[at] for at in places),
        "reversed": ", ".join(WORDS[at] for at in back),
        "words_zh": "、".join(WORDS_ZH[at] for at in places),
        "reversed_zh": "、".join(WORDS_ZH[at] for at in back),
    }


def looking_up(draw: random.Random) -> Row:
    """Who has put what where, and a question about one of it."""
    who, what, where = (draw.sample(range(len(names)), 4) for names in (NAMES, THINGS, PLACES))
    asked = draw.randrange(4)
    facts = list(zip(who, what, where, strict=True))
    return {
        "text": " ".join(f"{NAMES[a]} put the {THINGS[b]} in the {PLACES[c]}." for a, b, c in facts),
        "question": f"Where are the {THINGS[what[asked]]}?",
        "choices": [PLACES[at] for at in where],
        "text_zh": "".join(f"{NAMES_ZH[a]}把{THINGS_ZH[b]}放在{PLACES_ZH[c]}。" for a, b, c in facts),
        "question_zh": f"{THINGS_ZH[what[asked]]}在哪里？",
        "choices_zh": [PLACES_ZH[at] for at in where],
        "correct": asked,
    }


def comparing(draw: random.Random) -> Row:
    """Four numbers, of which one is the largest."""
    numbers = draw.sample(range(10, 999), 4)
    return {"numbers": numbers, "correct": numbers.index(max(numbers))}


MADE: Mapping[str, Callable[[random.Random], Row]] = {
    "addition": addition,
    "story": story,
    "copying": copying,
    "reversing": reversing,
    "looking_up": looking_up,
    "comparing": comparing,
}


def make_rows(name: str, count: int, seed: int) -> list[Row]:
    """Return rows of a maker; equal names, numbers and seeds give equal rows."""
    draw = random.Random(f"{name}:{seed}")
    return [MADE[name](draw) for _ in range(count)]
