"""The form at the door: a page without scripts; nothing of ours runs before a person is known."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, Template, select_autoescape
from starlette.requests import Request
from starlette.responses import HTMLResponse

from catena.console.language import NAMES, preferred, say
from catena.console.login import TooMany
from catena.core.language import LANGUAGES
from catena.govern.access import Denied

FOLDER = Path(__file__).with_name("static")
LANGUAGE_COOKIE, DARK_COOKIE = "catena_language", "catena_dark"


@cache
def _template() -> Template:
    return Environment(loader=FileSystemLoader(FOLDER), autoescape=select_autoescape(default=True)).get_template(
        "login.jinja"
    )


def form(request: Request, prefix: str, after: str, error: Denied | None = None) -> HTMLResponse:
    """Return the form, with what was wrong where something was."""
    asked = request.query_params.get("language", "") or request.cookies.get(LANGUAGE_COOKIE, "")
    language = preferred(asked, request.headers.get("accept-language", ""))
    wrong = "" if error is None else "login.too_many" if isinstance(error, TooMany) else f"login.{_why(error)}"
    others = [
        (NAMES[other], f"{prefix}/login?language={other}&next={quote(after, safe='')}")
        for other in LANGUAGES
        if other != language
    ]
    body = _template().render(
        say=lambda key: say(language, key, {}),
        language="zh-CN" if language == "zh" else "en",
        action=f"{prefix}/login?next={quote(after, safe='')}",
        others=others,
        wrong=wrong,
        dark=request.cookies.get(DARK_COOKIE, "auto"),
        style=(FOLDER / "login.css").read_text(encoding="utf-8"),
    )
    answer = HTMLResponse(body, 200 if error is None else error.http_status)
    answer.headers["cache-control"] = "no-store"
    answer.headers["content-security-policy"] = (
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
    )
    if request.query_params.get("language", "") in LANGUAGES:
        answer.set_cookie(LANGUAGE_COOKIE, language, 365 * 86400, path=prefix or "/", samesite="strict")
    return answer


def _why(error: Denied) -> str:
    known = {"expired_api_key": "expired", "revoked_api_key": "revoked", "missing_api_key": "missing"}
    return known.get(error.code, "invalid")
