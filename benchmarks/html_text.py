"""HTML to main text: pages a second and F-score of the union of two extractors against each of them alone.

    python benchmarks/html_text.py [--pages N]

The pages are generated from texts whose main part is known: articles with and without `<main>`, documentation, a
forum, a table for layout, a short notice in a large frame, a page that is mostly a list, and Chinese articles. They are
ours, so the scores compare the three with one another and say nothing about the web at large. Scores are over the bag
of words (of characters in Chinese) of each page, averaged over pages. Writes `benchmarks/results/html_text.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(Path(__file__).parent))

from formats import sentences  # noqa: E402

from catena.data.extract import Extractor, main_text  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "html_text.json"
EXTRACTORS: tuple[Extractor, ...] = ("union", "resiliparse", "trafilatura")
WORDS = re.compile(r"[\u4e00-\u9fff]|[^\W\u4e00-\u9fff]+")
CHINESE = (
    "这个模块用来连接和拆分文件的名字。", "需要在多种系统上运行的程序会用到它。",
    "函数返回一个新的列表，原来的列表不变。",
    "如果文件不存在，就会引发一个异常。", "参数的默认值只在定义时计算一次。", "字典按照插入的顺序保存键和值。",
    "生成器每次只产生一个值，因此占用的内存很少。", "测试应当说明一个事实，而不是一个过程。",
)  # fmt: skip


class Maker:
    """Makes pages of one seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.known = sentences()

    def text(self, count: int, chinese: bool = False) -> list[str]:
        """Return paragraphs."""
        source, between = (CHINESE, "") if chinese else (self.known, " ")
        return [between.join(self.rng.choices(source, k=self.rng.randint(2, 5))) for _ in range(count)]

    def frame(self, inner: str, chinese: bool = False) -> str:
        """Put the main part into a site's frame: navigation, banner, aside, footer."""
        words = ("首页", "新闻", "关于我们", "联系") if chinese else ("Home", "News", "About us", "Contact", "Sign in")
        links = "".join(f'<li><a href="/{n}">{word} {n}</a></li>' for n, word in enumerate(words * 4))
        teasers = "".join(f'<div class="teaser"><a href="#">{text[:60]}</a></div>' for text in self.text(6, chinese))
        return (
            f"<html><head><title>T</title><style>p{{color:red}}</style></head><body><header><nav><ul>{links}</ul></nav>"
            f'</header><div class="cookie-banner">We use cookies. <button>Accept</button></div>{inner}'
            f'<aside class="sidebar"><h3>Related</h3>{teasers}</aside><footer><p>Copyright 2026. All rights reserved.'
            f"</p><ul>{links}</ul></footer><script>var a = 1;</script></body></html>"
        )

    def article(self, mark: str = "main", chinese: bool = False, count: int = 0) -> tuple[str, str]:
        """Return an article page and its main text."""
        found = self.text(count or self.rng.randint(3, 14), chinese)
        body = "".join(f"<p>{text}</p>" for text in found)
        opening = f"<{mark}>" if mark in ("main", "article") else f'<div class="{mark}">'
        closing = f"</{mark}>" if mark in ("main", "article") else "</div>"
        return self.frame(f"{opening}<h1>{found[0][:40]}</h1>{body}{closing}", chinese), "\n".join(
            [found[0][:40], *found]
        )

    def manual(self) -> tuple[str, str]:
        """Return a page of documentation: headings, code, definition lists."""
        parts, truth = [], []
        for number, text in enumerate(self.text(8)):
            code = f"value = module.call({number})"
            parts.append(f"<h2>Section {number}</h2><p>{text}</p><pre><code>{code}</code></pre>")
            truth += [f"Section {number}", text, code]
        definitions = self.text(5)
        parts.append(
            "<dl>" + "".join(f"<dt>name{n}</dt><dd>{text}</dd>" for n, text in enumerate(definitions)) + "</dl>"
        )
        truth += [f"name{n} {text}" for n, text in enumerate(definitions)]
        return self.frame(f'<div role="main" class="body">{"".join(parts)}</div>'), "\n".join(truth)

    def forum(self) -> tuple[str, str]:
        """Return a thread: a question and answers."""
        found = self.text(self.rng.randint(4, 8))
        posts = "".join(f'<div class="post"><div class="post-text"><p>{text}</p></div></div>' for text in found)
        return self.frame(f'<div id="thread">{posts}</div>'), "\n".join(found)

    def old(self) -> tuple[str, str]:
        """Return a page laid out by a table."""
        found = self.text(6)
        cell = "<br><br>".join(found)
        return self.frame(f"<table><tr><td>{cell}</td></tr></table>"), "\n".join(found)

    def listing(self) -> tuple[str, str]:
        """Return a page whose main part is a list."""
        found = self.text(20)
        items = "".join(f"<li><b>{n}</b> {text}</li>" for n, text in enumerate(found))
        return self.frame(f'<div class="content"><ul>{items}</ul></div>'), "\n".join(
            f"{n} {text}" for n, text in enumerate(found)
        )

    def page(self, number: int) -> tuple[str, str, str]:
        """Return (kind, page, main text)."""
        makers = {
            "article in main": self.article,
            "article in article": lambda: self.article("article"),
            "article in div": lambda: self.article("entry-content"),
            "documentation": self.manual,
            "forum": self.forum,
            "table layout": self.old,
            "short notice": lambda: self.article("content", count=1),
            "list": self.listing,
            "Chinese article": lambda: self.article("article", chinese=True),
        }
        kind = list(makers)[number % len(makers)]
        return (kind, *makers[kind]())


def score(found: str, truth: str) -> tuple[float, float, float]:
    """Return precision, recall and F over the bags of words."""
    one, other = Counter(WORDS.findall(found)), Counter(WORDS.findall(truth))
    both = (one & other).total()
    precision, recall = both / max(one.total(), 1), both / max(other.total(), 1)
    return precision, recall, 2 * precision * recall / max(precision + recall, 1e-9)


def main() -> None:
    """Extract every page three times over and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=450)
    count = parser.parse_args().pages
    maker = Maker(1)
    pages = [maker.page(number) for number in range(count)]
    size = sum(len(page.encode()) for _, page, _ in pages)
    machine = (
        f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, Python {platform.python_version()}"
    )
    print(f"{count} generated pages, {size / count / 1000:.1f} KB each, one core of {machine}\n")
    print(f"{'extractor':<14}{'pages/s':>9}{'precision':>11}{'recall':>9}{'F':>8}{'worst page F':>14}")
    results: dict[str, Any] = {}
    for extractor in EXTRACTORS:
        main_text(pages[0][1], extractor)  # imports
    for extractor in EXTRACTORS:
        started = time.process_time()
        texts = [main_text(page, extractor)[2] for _, page, _ in pages]
        took = time.process_time() - started
        scores = [score(text, truth) for text, (_, _, truth) in zip(texts, pages, strict=True)]
        means = [sum(each[place] for each in scores) / count for place in range(3)]
        kinds = sorted({kind for kind, _, _ in pages})
        by_kind = {
            kind: [each[2] for each, (of, _, _) in zip(scores, pages, strict=True) if of == kind] for kind in kinds
        }
        results[extractor] = {
            "pages_per_s": round(count / took, 1),
            **dict(zip(("precision", "recall", "f"), (round(mean, 4) for mean in means), strict=True)),
            "worst_page_f": round(min(each[2] for each in scores), 4),
            "f_by_kind": {kind: round(sum(found) / len(found), 4) for kind, found in by_kind.items()},
        }
        print(
            f"{extractor:<14}{count / took:>9.1f}{means[0]:>11.4f}{means[1]:>9.4f}{means[2]:>8.4f}"
            f"{results[extractor]['worst_page_f']:>14.4f}"
        )
    print(f"\n{'F by kind':<22}" + "".join(f"{extractor:>14}" for extractor in EXTRACTORS))
    for kind in results["union"]["f_by_kind"]:
        print(f"{kind:<22}" + "".join(f"{results[extractor]['f_by_kind'][kind]:>14.4f}" for extractor in EXTRACTORS))
    ratio = results["union"]["pages_per_s"] / results["trafilatura"]["pages_per_s"]
    print(f"\nunion: {ratio:.1f} times the pages a second of trafilatura alone")
    told = {"machine": machine, "pages": count, "bytes": size, "speed_against_trafilatura": round(ratio, 2)}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({**told, "extractors": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
