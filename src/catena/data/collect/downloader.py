"""How scrapy's downloader is to behave for a crawl: its settings, and what it does with robots.txt and busy servers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scrapy.downloadermiddlewares.retry import RetryMiddleware
from scrapy.http import Request, Response

if TYPE_CHECKING:
    from catena.data.collect.spider import Job

LATER = frozenset({429, 503})
"""Statuses that mean: come back later."""


class RobotsAnswers:
    """Downloader middleware: what an error means for robots.txt (RFC 9309): 4xx allows everything, 5xx nothing."""

    def process_response(self, request: Request, response: Response) -> Response:
        """Replace the body of an error page, which is not a robots file."""
        if not request.url.endswith("/robots.txt") or response.status < 400:
            return response
        body = b"User-agent: *\nDisallow: /\n" if response.status >= 500 else b""
        return response.replace(status=200, body=body)


class PatientRetry(RetryMiddleware):  # type: ignore[misc]
    """Downloader middleware: a page that asks to come back later (429, 503) is the spider's affair."""

    def process_response(self, request: Request, response: Response, *rest: Any) -> Any:
        """Let such an answer through, and retry others as ever."""
        if request.meta.get("page") and response.status in LATER:
            return response
        return super().process_response(request, response, *rest)


def settings_of(job: Job) -> dict[str, Any]:
    """Return scrapy's settings for a job."""
    return {
        "USER_AGENT": job.user_agent,
        "ROBOTSTXT_OBEY": job.obey_robots,
        "ROBOTSTXT_USER_AGENT": job.user_agent.partition("/")[0],
        "DOWNLOADER_MIDDLEWARES": {RobotsAnswers: 500, RetryMiddleware: None, PatientRetry: 550},
        "DOWNLOAD_DELAY": job.delay_s,
        "RANDOMIZE_DOWNLOAD_DELAY": False,
        "CONCURRENT_REQUESTS": job.concurrency,
        "CONCURRENT_REQUESTS_PER_DOMAIN": job.concurrency,
        "DOWNLOAD_TIMEOUT": job.timeout_s,
        "DOWNLOAD_MAXSIZE": job.max_bytes,
        "DOWNLOAD_WARNSIZE": 0,
        "REDIRECT_MAX_TIMES": job.max_redirects,  # of robots.txt; pages are redirected by the frontier
        "RETRY_TIMES": job.retries,
        "METAREFRESH_ENABLED": False,
        "COOKIES_ENABLED": False,
        "TELNETCONSOLE_ENABLED": False,
        "HTTPPROXY_ENABLED": not job.public,
        "LOG_LEVEL": "WARNING",
    }
