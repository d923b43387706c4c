"""Rows that people changed: they stay when the source is asked again, and what was collected before stays too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from catena.core.errors import DataError
from catena.core.sample import Sample
from catena.core.stage import Context
from catena.core.trace import TRACES
from catena.core.types import DatasetVersion
from catena.hub.corrections import Correction, correct
from catena.hub.fsck import collect_garbage
from catena.hub.versions import checkout, commit_file
from tests.data import test_collect_feedback as feedback
from tests.data.feedback_traces import Planted, trace
from tests.data.loopback import FAST, Reply, collect, loopback
from tests.data.stores import samples
from tests.data.test_collect_feed import entry, rss
from tests.data.test_ingest import folder_of, ingest


def newest(ctx: Context) -> DatasetVersion:
    return ctx.store.resolve(ctx.name, DatasetVersion)


def by_key(ctx: Context, name: str = "key") -> dict[str, str]:
    """What the rows of the newest version say, in their order."""
    rows = samples(ctx.store, newest(ctx))
    return {str(row.metadata.get(name, row.id)).rpartition("/")[2]: row.text for row in rows}


def say(ctx: Context, wanted: Callable[[Sample], bool], text: str) -> None:
    """Correct the text of rows."""
    found = [Correction(row.id, "text", row.text, text) for row in samples(ctx.store, newest(ctx)) if wanted(row)]
    assert found
    assert correct(ctx.store, ctx.name, found, author="ada").changed == len(found)


@pytest.mark.parametrize("most", [False, True])  # most rows changed: a table of its own is written
def test_a_feed_goes_on_after_a_correction_and_both_stay(context: Context, most: bool) -> None:
    feed = {"body": rss(*(entry(number) for number in (1, 2, 3, 4)))}
    with loopback(lambda asked: Reply(feed["body"])) as server:

        def refresh(*numbers: int, **changed: str) -> dict[str, str]:
            feed["body"] = rss(*(entry(number, changed.get(f"g{number}", "")) for number in numbers))
            collect(context, "data.collect_feed", urls=[server.url], http=FAST)
            return {key[-2:]: text.partition("\n\n")[2] or text for key, text in by_key(context).items()}

        refresh(1, 2, 3, 4)
        said = ["g1", "g2", "g3"] if most else ["g2"]
        say(context, lambda row: row.metadata["key"][-2:] in said, "by hand")
        read = {f"g{number}": f"text {number}" for number in range(1, 7)}
        wanted = {**read, **dict.fromkeys(said, "by hand")}
        # Once more: the source says the old words again, and then others.
        assert refresh(2, 3, 4, 5, 6) == wanted
        assert list(refresh(2, 4, g2="new", g4="new").items()) == list({**wanted, "g4": "new"}.items())
        assert newest(context).profile["by_hand"] == [f"{server.url} {key}" for key in said]


def test_what_people_took_out_or_added_is_not_undone(context: Context, tmp_path: Path) -> None:
    feed = {"body": rss(entry(1), entry(2), entry(3))}
    with loopback(lambda asked: Reply(feed["body"])) as server:
        values = {"urls": [server.url], "http": FAST}
        collect(context, "data.collect_feed", **values)
        (path,) = (one for one in checkout(context.store, context.name, tmp_path / "out") if one.stem == "samples")
        lines = [line for line in path.read_text().splitlines() if "text 2" not in line]
        path.write_text("\n".join([*lines, '{"text": "added"}']))
        commit_file(context.store, context.name, path, message="one out, one in")
        feed["body"] = rss(entry(2), entry(3), entry(4))
        collect(context, "data.collect_feed", **values)
        assert sorted(by_key(context).values()) == [
            "Title 1\n\ntext 1",
            "Title 3\n\ntext 3",
            "Title 4\n\ntext 4",
            "added",
        ]


def test_nothing_is_lost_when_the_version_before_the_correction_was_swept_away(context: Context) -> None:
    feed = {"body": rss(entry(1), entry(2))}
    with loopback(lambda asked: Reply(feed["body"])) as server:
        first = collect(context, "data.collect_feed", urls=[server.url], http=FAST)
        say(context, lambda row: row.metadata["key"].endswith("g1"), "by hand")
        assert first.digest in collect_garbage(context.store, unused=True).artifacts
        feed["body"] = rss(entry(1), entry(3))
        collect(context, "data.collect_feed", urls=[server.url], http=FAST)
        assert [row.text[-7:] for row in samples(context.store, newest(context))] == ["by hand", "\ntext 2", "\ntext 3"]


def test_another_config_is_refused_where_it_would_lose_what_people_changed(context: Context) -> None:
    with loopback(lambda asked: Reply(rss(entry(1), entry(2)))) as server:
        collect(context, "data.collect_feed", urls=[server.url], http=FAST)
        say(context, lambda row: True, "by hand")
        with pytest.raises(DataError, match="people changed 2 of its rows") as caught:
            collect(context, "data.collect_feed", urls=[server.url], text="title", http=FAST)
    assert "another name" in caught.value.hint


def test_a_file_stays_as_people_left_its_rows_and_the_others_are_read_again(context: Context, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, a_txt="one", b_txt="two", c_txt="three", d_txt="four")
    ingest(context, folder)
    say(context, lambda row: row.metadata["path"] == "b.txt", "by hand")
    (folder / "c.txt").write_text("3")
    wanted = {"a.txt": "one", "b.txt": "by hand", "c.txt": "3", "d.txt": "four"}
    ingest(context, folder)
    assert list(by_key(context, "path").items()) == list(wanted.items())
    (folder / "b.txt").write_text("2")
    ingest(context, folder)
    assert list(by_key(context, "path").items()) == list(wanted.items())
    ingest(context, folder, license="MIT", limits={"file_bytes": 1000})  # read in another way: all the other files are
    assert list(by_key(context, "path").items()) == list(wanted.items())
    ingest(context, folder)
    assert list(by_key(context, "path").items()) == list(wanted.items())
    (folder / "b.txt").unlink()
    ingest(context, folder)
    (folder / "b.txt").write_text("2")
    ingest(context, folder)
    assert by_key(context, "path") == {**wanted, "b.txt": "2"}


def test_feedback_goes_on_after_a_correction(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Planted()
    monkeypatch.setattr(TRACES, "load", lambda name: source)
    source.said = [trace("1"), trace("2"), trace("3")]
    made = feedback.run(context)
    (row,) = [one for one in samples(context.store, made) if one.metadata["trace"] == "1"]
    better = [*row.data["messages"][:-1], {"role": "assistant", "content": "by hand"}]
    correct(context.store, context.name, [Correction(row.id, "messages", row.data["messages"], better)])
    source.said = [*source.said, trace("4"), trace("1", answer="Said again.", correction="Other words.")]
    wanted = {"1": "by hand", **{number: f"Number {number} is {number * 3}." for number in "234"}}
    assert list(feedback.rows(context, feedback.run(context)).items()) == list(wanted.items())
    source.said = [*source.said, replace(trace("1"), consent=False)]
    assert feedback.rows(context, feedback.run(context)) == {key: wanted[key] for key in "234"}
