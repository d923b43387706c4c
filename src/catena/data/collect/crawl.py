"""The stage `data.crawl`: a web site becomes a dataset of media samples, one row for each page, as it came.

    config -> job -> spool (child process: scrapy) -> rows and rejects, by address

A crawl is incremental: the version before is asked for under the same name, the server is asked only whether its pages
changed, and a page whose bytes are the same keeps its row. An unchanged site gives the same dataset, digest and all.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from catena import __version__
from catena.core.config import Config
from catena.core.errors import EnvironmentProblem, RemoteError, environment_problem
from catena.core.sample import Sample, sample_id
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion
from catena.data.collect.child import last_lines, running
from catena.data.collect.site import SITES, Site
from catena.data.collect.spool import Record, Spool
from catena.hub.datasets import DatasetWriter

if TYPE_CHECKING:
    from catena.data.collect.spider import Job

METADATA = ("url", "status", "etag", "last_modified", "depth", "sha256", "charset")
SHOWN = 20


class CrawlConfig(Config):
    """Which site to collect, and how politely."""

    start: tuple[str, ...] = ()
    """Addresses where the crawl begins; paths such as `/json.html` when `site` is set."""
    sitemaps: tuple[str, ...] = ()
    """Addresses of sitemaps (XML, index, text, gzipped); the pages that they name count as start pages."""
    robots_sitemaps: bool = True
    """Read also the sitemaps that the robots.txt of a start host names."""
    site: str | None = None
    """A server that Catena starts on loopback for the crawl and stops after it: `pydoc`, or a plugin's."""
    hosts: tuple[str, ...] = ()
    """Further hosts (with port, if any) that links may lead to; those of the start addresses always may."""
    allow: tuple[str, ...] = ()
    """Follow only links whose path and query match one of these globs, for example `/docs/*` (`*` crosses `/`)."""
    deny: tuple[str, ...] = ()
    """Do not follow links whose path and query match one of these globs; stronger than `allow`."""
    max_depth: int = Field(3, ge=0)
    """Most links from a start page."""
    max_pages: int = Field(1000, ge=1)
    """Most addresses to ask, failures and redirects included."""
    max_redirects: int = Field(5, ge=0)
    """Most redirects one after the other."""
    max_bytes: int = Field(10_000_000, ge=1)
    """Largest body, decompressed; a larger one is cut off on the way and rejected."""
    media_types: Annotated[tuple[str, ...], Field(min_length=1)] = ("text/html", "application/xhtml+xml", "text/plain")
    """Media types to keep; the body of any other is not downloaded."""
    delay_s: float = Field(0.5, ge=0)
    """Least time between two requests to one host, in seconds; a Crawl-delay in robots.txt may make it longer."""
    max_delay_s: float = Field(60.0, ge=0)
    """Longest Crawl-delay and Retry-After to wait for; pages of a host that asks for more are rejected."""
    concurrency: int = Field(4, ge=1, le=64)
    """Most requests under way at once."""
    timeout_s: float = Field(30.0, gt=0)
    """Longest time for one answer, body included, in seconds."""
    retries: int = Field(1, ge=0, le=10)
    """How often to ask again after a timeout, a lost connection or an error of the server."""
    obey_robots: bool = True
    """Obey robots.txt and links marked nofollow."""
    license: str | None = None
    """Licence of what is collected, for example an SPDX identifier; rows carry it through the whole chain."""

    def modules(self) -> tuple[str, ...]:
        """Return where the site lives: a plugin's too. An unknown one is told when the crawl begins."""
        place = None if self.site is None else SITES.table().get(self.site)
        return () if place is None else (place.partition(":")[0],)

    @model_validator(mode="after")
    def _addresses_make_sense(self) -> CrawlConfig:
        if self.site is None and not self.start and not self.sitemaps:
            raise ValueError("give `start` addresses, `sitemaps`, or a `site`")
        for address in (*self.start, *self.sitemaps):
            parts = urlsplit(address)
            if self.site is not None and not address.startswith("/"):
                raise ValueError(f"with `site`, start addresses are paths that begin with '/', not {address!r}")
            if self.site is None and (parts.scheme not in ("http", "https") or not parts.netloc):
                raise ValueError(f"{address!r} is not an http or https address")
        return self


@stage("data.crawl", volatile=True, uses=("catena.data.collect.spider", "catena.data.collect.pydoc"))
def crawl(ctx: Context, cfg: CrawlConfig) -> DatasetVersion:
    """Collect a web site: robots.txt, rate, depth, allowed paths, and only what changed since the version before.

    Rows are ordered by address; `metadata` holds url, status, etag, last_modified, depth, sha256, charset. Every
    address that was asked and gave no row is among the rejects. Raises `RemoteError` when no page came at all.
    """
    site: Site | None = None if cfg.site is None else SITES.load(cfg.site)()
    previous = _previous(ctx)
    spool = _open_spool(ctx, _job(cfg, site), previous)
    if spool.left() is None:
        _fetch(ctx, spool, site)
    records = sorted(spool.records().values(), key=lambda record: record.url)
    if not any(record.outcome in ("page", "not_modified") for record in records):
        # What failed now may work at the next try: nothing of this one is kept.
        spool.discard()
        raise _nothing_came(records)
    counts: Counter[str] = Counter()
    with ctx.store.new_dataset("media", license=cfg.license) as writer:
        for record in records:
            _write(writer, record, spool, previous.get(record.url), site, counts)
        unlinked = sorted(previous.keys() - {record.url for record in records})
        left = spool.left() or 0
        profile = {"left_by_max_pages": left, "unlinked": len(unlinked), "unlinked_first": unlinked[:SHOWN]}
        dataset = writer.commit(rows_in=len(records) - counts["redirected"], profile={"crawl": profile})
    spool.discard()
    _tell(ctx, counts, left, len(unlinked))
    return dataset


def _job(cfg: CrawlConfig, site: Site | None) -> Job:
    from catena.data.collect.frontier import canonical, host_of
    from catena.data.collect.spider import Job

    public = site.public if site is not None else ""
    paths = cfg.start or list(site.start if site is not None else ())
    start = [canonical(public + path) for path in paths]
    sitemaps = [canonical(public + path) for path in cfg.sitemaps]
    only = site.paths() if site is not None else None
    return Job(
        start=start,
        sitemaps=sitemaps,
        hosts=sorted({*(host_of(url) for url in (*start, *sitemaps)), *cfg.hosts}),
        only=None if only is None else sorted(only),
        concurrency=cfg.concurrency if site is None else min(cfg.concurrency, site.concurrency),
        user_agent=f"catena/{__version__}",
        public=public,
        **cfg.model_dump(mode="json", exclude={"start", "sitemaps", "site", "hosts", "concurrency", "license"}),
    )


def _previous(ctx: Context) -> dict[str, Sample]:
    """Return the rows of the version before by address, with their bodies left out."""
    latest = ctx.store.latest(ctx.name)
    if not isinstance(latest, DatasetVersion) or latest.shape != "media":
        return {}
    rows = ctx.store.open_dataset(latest).samples()
    return {row.source: replace(row, data={"media_type": row.data["media_type"]}) for row in rows}


def _open_spool(ctx: Context, job: Job, previous: dict[str, Sample]) -> Spool:
    """Return the spool that an earlier try of the same work left, or a new one."""
    spool = Spool(ctx.workdir / "crawl")
    known = [_as_known(row) for row in previous.values()]
    basis = asdict(job)
    if spool.job() == basis and spool.known() == {record.url: record for record in known}:
        spool.mend()
        return spool
    spool.discard()
    spool.folder.mkdir(parents=True)
    if previous:
        latest = ctx.store.resolve(ctx.name, DatasetVersion)
        (spool.folder / "bodies").mkdir()
        for row in ctx.store.open_dataset(latest).samples():
            if row.metadata.get("etag") or row.metadata.get("last_modified"):
                spool.put_body(row.data["content"])
    spool.begin(basis, known)
    return spool


def _as_known(row: Sample) -> Record:
    facts = {key: str(row.metadata.get(key, "")) for key in ("sha256", "charset", "etag", "last_modified")}
    return Record(row.source, "page", media_type=str(row.data["media_type"]), **facts)  # type: ignore[arg-type]


def _fetch(ctx: Context, spool: Spool, site: Site | None) -> None:
    """Run the child until the spool is complete; what it had fetched stays when it fails."""
    log = ctx.workdir / "spider.log"
    log.unlink(missing_ok=True)
    # A proxy of the environment is for the world outside, never for a server on this machine.
    direct = ",".join(filter(None, (os.environ.get("no_proxy"), "127.0.0.1", "localhost", "::1")))
    env = {**os.environ, "no_proxy": direct, "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-P", "-m", "catena.data.collect.spider", str(spool.folder)]
    with ExitStack() as stack:
        if site is not None:
            base = stack.enter_context(site.serve(ctx.workdir))
            (spool.folder / "base").write_text(base)
        child = stack.enter_context(running(command, log, env=env, talk=True))
        _show_progress(ctx, child)
        code = child.wait()
    if code != 0:
        said = last_lines(log)
        problem = environment_problem(RuntimeError(said), spool.folder)
        raise problem or EnvironmentProblem(
            f"the crawler's process ended early (code {code}){': ' + said if said else ''}",
            hint="Run the same command again: it goes on, and fetches no page twice.",
        )


def _show_progress(ctx: Context, child: subprocess.Popen[str]) -> None:
    progress = ctx.progress("crawl", unit="pages")
    for line in child.stdout or ():
        done, _, waiting = line.strip().partition(" ")
        if done.isdigit() and waiting.isdigit():
            progress.advance(int(done) - progress.done, waiting=int(waiting))
    progress.finish()


def _write(
    writer: DatasetWriter, record: Record, spool: Spool, old: Sample | None, site: Site | None, counts: Counter[str]
) -> None:
    """Write the row of one address, or its reject, and count what happened."""
    if record.outcome == "redirect":
        counts["redirected"] += 1
        return
    if record.outcome == "reject":
        counts[record.reason if record.reason in ("gone", "robots") else "failed"] += 1
        writer.reject(_row(record, b"", writer.license), record.reason, record.detail)
        return
    body = spool.body(record.sha256)
    counts["not_modified" if record.outcome == "not_modified" else "fetched"] += 1
    counts["bytes"] += record.size
    problem = site.problem(body) if site is not None else None
    if problem is not None:
        counts["failed"] += 1
        writer.reject(_row(record, body, writer.license), problem)
        return
    if old is not None and old.metadata.get("sha256") == record.sha256:
        # The row as it was, to the last field: a new ETag for the same bytes is no new version.
        writer.add(replace(old, data={"content": body, **old.data}, license=writer.license))
        return
    counts["changed" if old is not None else "new"] += 1
    writer.add(_row(record, body, writer.license))


def _row(record: Record, body: bytes, license: str | None) -> Sample:
    facts = {key: getattr(record, key) for key in METADATA}
    return Sample(
        id=sample_id(record.url, body),
        data={"content": body, "media_type": record.media_type},
        metadata=facts,
        source=record.url,
        license=license,
    )


def _nothing_came(records: list[Record]) -> RemoteError:
    rejects = [record for record in records if record.outcome == "reject"]
    if not rejects:
        return RemoteError("the site redirects and shows no page", hint="Add the host it leads to to `hosts`.")
    first = rejects[0]
    reason = first.detail or first.reason
    hints = {
        "robots": "The site does not want to be crawled there; choose other start addresses.",
        "unsupported_type": "Add its media type to `media_types`.",
        "too_large": "Raise `max_bytes`.",
        "redirect_offsite": "Add the host it leads to to `hosts`.",
    }
    hint = hints.get(first.reason, "See whether the address is right and the server runs; then run again.")
    more = f", and so did {len(rejects) - 1} more" if len(rejects) > 1 else ""
    return RemoteError(f"no page came from {first.url}: {reason}{more}", hint=hint)


def _tell(ctx: Context, counts: Counter[str], left: int, unlinked: int) -> None:
    for name in ("fetched", "not_modified", "changed", "new", "gone", "failed", "robots", "redirected", "bytes"):
        ctx.events.metric(name, counts[name])
    ctx.events.metric("unlinked", unlinked)
    if left:
        ctx.events.log(f"max_pages is reached; {left} known addresses were not asked")
    if unlinked:
        ctx.events.log(f"{unlinked} pages of the version before are linked from nowhere any more and left the dataset")
