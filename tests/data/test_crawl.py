"""The crawl as a stage, against a real server: what comes in, what stays out and why, and what is asked again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from catena.core.config import parse
from catena.core.errors import ConfigError, NotFound, RemoteError
from catena.core.events import read_events
from catena.core.stage import Context, stage_of
from catena.core.types import DatasetVersion
from catena.data.collect.crawl import CrawlConfig, _job, _open_spool, crawl
from catena.data.collect.site import SITES
from catena.data.collect.spool import Record, Spool

from .conftest import LocalSite, Page


def go(ctx: Context, site: LocalSite, *paths: str, **options: Any) -> DatasetVersion:
    """Crawl, and name the result as the runner would."""
    start = [site.url + path for path in paths or ("/",)]
    values = {"delay_s": 0, "retries": 0, "timeout_s": 5, "start": start, **options}
    dataset = crawl(ctx, parse(CrawlConfig, values))
    ctx.store.index.add_artifact(dataset)
    ctx.store.index.add_name(ctx.name, dataset.digest)
    return dataset


def paths(ctx: Context, dataset: DatasetVersion, site: LocalSite) -> list[str]:
    return [row.source.removeprefix(site.url) for row in ctx.store.open_dataset(dataset).samples()]


def rejects(ctx: Context, dataset: DatasetVersion, site: LocalSite) -> dict[str, str]:
    return {row.source.removeprefix(site.url): why for row, why, _ in ctx.store.open_dataset(dataset).rejects()}


def metric(ctx: Context, name: str) -> float:
    events = read_events(ctx.workdir.parent / "events.jsonl")
    return [event["value"] for event in events if event["event"] == "metric" and event["name"] == name][-1]


def test_rows_are_the_pages_as_they_came_ordered_by_address(context: Context, site: LocalSite) -> None:
    site.link("/", "b", "/a?y=1&x=2#part", "/a?x=2&y=1", "mailto:me@example.com", "http://[", "javascript:void(0)")
    site.link("/a?x=2&y=1")
    site.pages["/b"] = Page("甲乙".encode("gb18030"), type="text/plain; charset=GB18030")
    dataset = go(context, site, license="CC-BY-4.0")
    rows = list(context.store.open_dataset(dataset).samples())
    assert [row.source.removeprefix(site.url) for row in rows] == ["/", "/a?x=2&y=1", "/b"]
    assert rows[2].data == {"content": "甲乙".encode("gb18030"), "media_type": "text/plain"}
    assert rows[2].metadata["charset"] == "gb18030"
    assert (rows[2].metadata["depth"], rows[2].metadata["status"], rows[2].license) == (1, 200, "CC-BY-4.0")
    assert dataset.shape == "media"
    assert site.times("/a?x=2&y=1") == 1
    assert not list(context.workdir.glob("crawl"))


def test_robots_txt_is_obeyed_and_the_refusal_recorded(context: Context, site: LocalSite) -> None:
    site.pages["/robots.txt"] = Page(b"User-agent: *\nDisallow: /private/\n", type="text/plain")
    site.link("/", "/private/x", "/open")
    site.link("/private/x")
    site.link("/open")
    dataset = go(context, site)
    assert paths(context, dataset, site) == ["/", "/open"]
    assert rejects(context, dataset, site) == {"/private/x": "robots"}
    assert site.times("/private/x") == 0
    assert "/private/x" in paths(context, go(context, site, obey_robots=False), site)


def test_a_robots_file_that_fails_forbids_everything(context: Context, site: LocalSite) -> None:
    site.pages["/robots.txt"] = Page(b"", status=503)
    site.link("/")
    with pytest.raises(RemoteError, match=r"robots\.txt"):
        go(context, site)


def test_links_to_other_hosts_denied_paths_and_nofollow_are_not_followed(context: Context, site: LocalSite) -> None:
    other = site.url.replace("127.0.0.1", "localhost")
    site.link("/", f"{other}/away", "/docs/a", "/docs/old/b", "/blog")
    site.pages["/docs/a"] = Page(b'<a rel="nofollow" href="/docs/c">c</a>')
    dataset = go(context, site, allow=["/docs/*"], deny=["*/old/*"])
    assert paths(context, dataset, site) == ["/", "/docs/a"]
    assert set(site.asked) == {"/robots.txt", "/", "/docs/a"}


def test_depth_is_bounded(context: Context, site: LocalSite, numbered: Callable[[str], Page | None]) -> None:
    site.any = numbered
    assert len(paths(context, go(context, site, "/n/1", max_depth=2), site)) == 7


def test_a_site_without_end_is_cut_at_max_pages_the_same_way_each_time(
    context: Context, site: LocalSite, numbered: Callable[[str], Page | None]
) -> None:
    site.any = numbered
    first = go(context, site, "/n/1", max_depth=99, max_pages=20)
    site.etags = False
    second = go(replace(context, name="other"), site, "/n/1", max_depth=99, max_pages=20, concurrency=1)
    assert paths(context, first, site) == paths(context, second, site)
    assert first.rows == 20
    assert first.profile["crawl"]["left_by_max_pages"] > 0


def test_an_unchanged_site_sends_no_body_and_gives_the_same_digest(context: Context, site: LocalSite) -> None:
    site.link("/", "/a", "/missing")
    site.link("/a", "/b")
    site.link("/b")
    first = go(context, site)
    site.forget()
    second = go(context, site)
    assert second.digest == first.digest
    assert site.unchanged == 3
    assert [path for path in site.sent if path not in ("/robots.txt", "/missing")] == []
    assert (metric(context, "not_modified"), metric(context, "fetched"), metric(context, "bytes")) == (3, 0, 0)


def test_the_same_content_without_etag_gives_the_same_digest(context: Context, site: LocalSite) -> None:
    site.etags = False
    site.link("/", "/a")
    site.link("/a")
    first = go(context, site)
    assert go(context, site).digest == first.digest
    assert (metric(context, "fetched"), metric(context, "changed"), metric(context, "new")) == (2, 0, 0)


def test_a_changed_page_makes_a_new_version_and_the_old_one_stays(context: Context, site: LocalSite) -> None:
    site.link("/", "/a", "/b")
    site.link("/a", text="old")
    site.link("/b")
    first = go(context, site)
    site.link("/a", text="new")
    second = go(context, site)
    assert second.digest != first.digest
    old, new = (
        {row.source.removeprefix(site.url): row for row in context.store.open_dataset(version).samples()}
        for version in (first, second)
    )
    assert b"old" in old["/a"].data["content"]
    assert b"new" in new["/a"].data["content"]
    assert old["/b"] == new["/b"]
    assert (metric(context, "changed"), metric(context, "not_modified")) == (1, 2)


def test_a_page_that_is_gone_leaves_with_a_reason(context: Context, site: LocalSite) -> None:
    site.link("/", "/a", "/b")
    site.link("/a")
    site.link("/b")
    go(context, site)
    del site.pages["/a"]
    second = go(context, site)
    assert paths(context, second, site) == ["/", "/b"]
    assert rejects(context, second, site) == {"/a": "gone"}
    assert go(context, site).digest == second.digest


def test_redirects_are_followed_and_loops_end(context: Context, site: LocalSite) -> None:
    site.link("/", "/old", "/loop/a", "/deep/1", "/away")
    site.link("/new")
    site.pages["/old"] = Page(status=301, location="/new")
    site.pages["/loop/a"] = Page(status=302, location="/loop/b")
    site.pages["/loop/b"] = Page(status=302, location="/loop/a")
    site.pages["/away"] = Page(status=302, location="http://other.invalid/")
    site.any = lambda path: Page(status=302, location=path + "1") if path.startswith("/deep/") else None
    dataset = go(context, site, max_redirects=3)
    assert paths(context, dataset, site) == ["/", "/new"]
    assert rejects(context, dataset, site) == {
        "/away": "redirect_offsite",
        "/deep/1111": "redirect_loop",
        "/loop/b": "redirect_loop",
    }
    assert site.times("/loop/a") == 1


def test_a_body_of_a_gigabyte_is_cut_off_without_sitting_in_memory(
    context: Context, site: LocalSite, tmp_path: Path
) -> None:
    site.link("/", "/big")
    site.pages["/big"] = Page(b"<html>", stream=1 << 30)
    # In a small process of its own: what is forked from a large one counts as being as large as that.
    code = PARENT + "import resource; print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    config = {"start": [site.url + "/"], "max_bytes": 1_000_000, "delay_s": 0, "retries": 0}
    command = [sys.executable, "-c", code, str(tmp_path), json.dumps(config)]
    child = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert 0 < int(child.stdout) < 400_000
    assert rejects(context, go(context, site, max_bytes=1_000_000), site) == {"/big": "too_large"}


def test_slow_failing_and_foreign_answers_are_rejected_with_their_reason(context: Context, site: LocalSite) -> None:
    site.link("/", "/slow", "/broken", "/image", "/fine")
    site.pages["/slow"] = Page(b"x" * 100, drip_s=0.1)
    site.pages["/broken"] = Page(b"oops", status=500)
    site.pages["/image"] = Page(b"\x89PNG", type="image/png", stream=1 << 30)
    site.link("/fine")
    dataset = go(context, site, timeout_s=1)
    assert paths(context, dataset, site) == ["/", "/fine"]
    assert rejects(context, dataset, site) == {
        "/slow": "timeout",
        "/broken": "http_error",
        "/image": "unsupported_type",
    }
    assert dataset.funnel is not None
    assert dataset.funnel.rejected == {"http_error": 1, "timeout": 1, "unsupported_type": 1}


def test_a_target_that_is_down_is_a_remote_error_and_works_later(context: Context, site: LocalSite) -> None:
    with pytest.raises(RemoteError, match="refused") as caught:
        crawl(context, CrawlConfig(start=("http://127.0.0.1:9/",), retries=0, delay_s=0))
    assert caught.value.hint
    assert not list(context.workdir.glob("crawl"))
    site.link("/")
    assert go(context, site).rows == 1


PARENT = """
import json, sys
from pathlib import Path
from catena.core.events import Events
from catena.core.stage import Context
from catena.data.collect.crawl import CrawlConfig, crawl
from catena.hub.store import open_store
root, config = Path(sys.argv[1]), json.loads(sys.argv[2])
crawl(Context(open_store(root / ".catena"), root / "workdir", 7, Events(), "test"), CrawlConfig(**config))
"""


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("victim", ["parent", "child"])
def test_a_killed_crawl_goes_on_and_fetches_no_page_twice(
    context: Context, site: LocalSite, numbered: Callable[[str], Page | None], tmp_path: Path, victim: str
) -> None:
    site.any, site.delay_s = numbered, 0.05
    config = {"start": [site.url + "/n/1"], "max_depth": 4, "delay_s": 0, "retries": 0, "concurrency": 2}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), json.dumps(config)], stderr=subprocess.DEVNULL
    ) as parent:
        wait_for(lambda: len(site.asked) > 10)
        children = psutil.Process(parent.pid).children(recursive=True)
        assert len(children) == 1
        os.kill(parent.pid if victim == "parent" else children[0].pid, signal.SIGKILL)
        assert parent.wait(20) != 0
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive
    dataset = crawl(context, CrawlConfig(**config))
    assert dataset.rows == 31
    # Two were under way when the crawl was killed: those may have been asked again.
    twice = [path for path in set(site.asked) if site.times(path) > 1 and path != "/robots.txt"]
    assert len(twice) <= 2


def test_a_kill_while_the_spool_is_removed_loses_no_page(
    context: Context, site: LocalSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.link("/", "/a", "/b")
    site.link("/a")
    site.link("/b")
    remove = shutil.rmtree

    def removed_in_part(path: Any, *args: Any, **options: Any) -> None:
        if Path(path).name != "crawl" or not (bodies := sorted(Path(path).glob("bodies/*"))):
            return remove(path, *args, **options)
        bodies[0].unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", removed_in_part)
    config = CrawlConfig(start=(site.url + "/",), delay_s=0, retries=0)
    with pytest.raises(KeyboardInterrupt):
        crawl(context, config)
    monkeypatch.undo()
    assert paths(context, crawl(context, config), site) == ["/", "/a", "/b"]


def begun(context: Context, config: CrawlConfig) -> Spool:
    """The spool that a killed try of this crawl left."""
    return _open_spool(context, _job(config, None), {})


def test_a_crawl_that_goes_on_asks_again_what_failed_in_passing(context: Context, site: LocalSite) -> None:
    site.link("/", "/a", "/b")
    site.link("/a", "/c")
    site.link("/b")
    site.link("/c")
    config = CrawlConfig(start=(site.url + "/",), delay_s=0, retries=0)
    spool = begun(context, config)
    spool.append(Record(site.url + "/a", "reject", 1, reason="timeout"))
    spool.append(Record(site.url + "/b", "reject", 1, 404, "gone"))
    spool.append(Record(site.url + "/stray", "reject", 1, 404, "gone"))  # where no link leads now
    dataset = crawl(context, config)
    assert paths(context, dataset, site) == ["/", "/a", "/c"]
    assert rejects(context, dataset, site) == {"/b": "gone"}
    assert (site.times("/a"), site.times("/b")) == (1, 0)


def test_a_record_without_its_body_is_asked_again(context: Context, site: LocalSite) -> None:
    site.link("/", "/a")
    site.link("/a")
    config = CrawlConfig(start=(site.url + "/",), delay_s=0, retries=0)
    spool = begun(context, config)
    lost = {"sha256": "0" * 64, "media_type": "text/html"}
    spool.append(Record(site.url + "/", "page", 0, 200, **lost))
    spool.append(Record(site.url + "/a", "page", 1, 200, **lost))
    spool.finish(0)
    assert paths(context, crawl(context, config), site) == ["/", "/a"]


def test_no_server_outlives_a_killed_crawl(context: Context, tmp_path: Path) -> None:
    config = {"site": "pydoc", "delay_s": 0.2, "max_pages": 40}
    command = [sys.executable, "-c", PARENT, str(tmp_path), json.dumps(config)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as parent:
        journal = tmp_path / "workdir" / "crawl" / "journal.jsonl"
        wait_for(lambda: journal.exists() and journal.read_bytes().count(b"\n") > 2)
        children = psutil.Process(parent.pid).children(recursive=True)
        assert len(children) == 2
        parent.kill()
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({}, "start"),
        ({"start": ["ftp://example.com/"]}, "not an http"),
        ({"start": ["json.html"], "site": "pydoc"}, "begin with"),
        ({"start": ["http://a.example/"], "max_pages": 0}, "max_pages"),
        ({"start": ["http://a.example/"], "max_page": 3}, "max_pages"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse(CrawlConfig, values)


def test_an_unknown_site_is_named_with_the_known_ones(context: Context) -> None:
    with pytest.raises(NotFound, match="pydocs") as caught:
        crawl(context, CrawlConfig(site="pydocs"))
    assert "pydoc" in caught.value.hint


def test_the_stage_depends_on_the_code_of_its_child_process() -> None:
    assert stage_of(crawl).uses == ("catena.data.collect.spider", "catena.data.collect.pydoc")
    assert stage_of(crawl).volatile


def test_the_code_of_a_plugins_site_is_part_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SITES, "_plugins", {"mine": "catena_example.stages:Site"})
    assert CrawlConfig(site="mine").modules() == ("catena_example.stages",)
    assert CrawlConfig(site="pydoc").modules() == ("catena.data.collect.pydoc",)
    assert CrawlConfig(start=("http://a.example/",)).modules() == CrawlConfig(site="unknown").modules() == ()
    assert stage_of(crawl).code(CrawlConfig(site="mine")) != stage_of(crawl).code(CrawlConfig(site="pydoc"))
