"""The recipe `clean-corpus` on a small folder of many kinds of files: what goes through, what is kept back, and why."""

from __future__ import annotations

import random
from pathlib import Path

import catena as c
from catena.core.types import DatasetVersion

RECIPE = Path(__file__).parents[2] / "recipes" / "clean-corpus.yaml"
SUBJECTS = ["The engineer", "A teacher", "The old captain", "My neighbour", "The committee", "Our guide"]
VERBS = ["explained that", "had written that", "was told that", "could not believe that", "has shown that"]
THINGS = ["the bridge", "the harbour", "the northern road", "the library", "the river", "the garden", "the tower"]
ENDS = ["had been built with care", "was closed for the winter", "is older than the church", "would be mended"]


def prose(seed: int, sentences: int = 24) -> str:
    """Sentences that a person might have written: enough of them for every rule."""
    draw = random.Random(seed)
    made = [
        f"{draw.choice(SUBJECTS)} {draw.choice(VERBS)} {draw.choice(THINGS)} and {draw.choice(THINGS)} "
        f"number {draw.randrange(900)} {draw.choice(ENDS)}, and to be of use in {draw.randrange(1700, 2020)}."
        for _ in range(sentences)
    ]
    return "\n".join(" ".join(made[place : place + 3]) for place in range(0, sentences, 3))


def put_files(folder: Path) -> None:
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02}.txt").write_text(prose(number))
    body = "".join(f"<p>{line}</p>" for line in prose(50).splitlines())
    (folder / "page.html").write_text(
        f"<html><body><nav><a href='/'>Home</a></nav><main><h1>A page</h1>{body}</main></body></html>"
    )
    (folder / "copy.md").write_text(prose(3) + "\nOne more sentence stands at the end of this copy.")
    (folder / "personal.txt").write_text(prose(60) + "\nPlease write to li.wei@acme-mail.io before the end of May.")
    (folder / "german.txt").write_text("Der alte Kapitän erzählte, dass die Brücke im Winter geschlossen war. " * 3)
    (folder / "short.txt").write_text("Too short.")
    (folder / "menu.txt").write_text("\n".join(["Home", "About", "Contact"] * 20))
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7 and then nothing")
    (folder / "empty.txt").touch()


def test_a_folder_becomes_a_clean_corpus_and_every_other_file_has_its_reason(tmp_path: Path) -> None:
    put_files(tmp_path / "files")
    with c.open(tmp_path / ".catena") as ws:
        # Sentences made of few parts repeat phrases more than Gopher allows.
        alike = "rules.filters.repetition.duplicate_ngrams=false"
        ws.run(RECIPE, overrides=[f'documents.paths=["{tmp_path / "files"}"]', alike])

        def version(step: str) -> DatasetVersion:
            return ws.store.resolve(f"clean-corpus/{step}", DatasetVersion)

        def reasons(step: str) -> dict[str, int]:
            funnel = version(step).funnel
            assert funnel is not None
            return dict(funnel.rejected)

        corpus = list(ws.dataset("clean-corpus/corpus").samples())
        assert reasons("documents") == {"damaged": 1, "empty": 1}
        assert reasons("lines") == {"no_line_left": 2}
        assert reasons("deduped") == {"near_duplicate": 1}
        steps = ["documents", "lines", "rules", "languages", "masked", "deduped", "corpus"]
        assert sum(sum(reasons(step).values()) for step in steps) + len(corpus) == 20
        assert {sample.split for sample in corpus} == {"train", "validation", "test"}
        assert {sample.metadata["path"] for sample in corpus} >= {"page.html", "personal.txt", "copy.md", "00.txt"}
        (personal,) = [sample.text for sample in corpus if sample.metadata["path"] == "personal.txt"]
        assert personal.endswith("Please write to [EMAIL] before the end of May.")
