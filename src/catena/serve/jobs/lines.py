"""The lines of a batch's file, and those of its answers, in OpenAI's form. No I/O."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from catena.serve.inner import Answered
from catena.serve.jobs.tables import Result
from catena.serve.wire import MOST_DEEP, too_deep

KEYS = {"custom_id", "method", "url", "body"}
LONGEST_ID = 512
MOST_ERRORS = 50


@dataclass(frozen=True, slots=True)
class Line:
    """One request of a batch."""

    number: int
    """From 1, as editors count."""
    custom_id: str
    body: dict[str, Any]

    @property
    def model(self) -> str:
        """Whom it asks."""
        return str(self.body.get("model", ""))


def parsed(lines: Iterable[bytes]) -> Iterator[Line]:
    """Yield the requests of a file that was checked."""
    for number, data in enumerate(lines, 1):
        if data.strip():
            value = orjson.loads(data)
            yield Line(number, value["custom_id"], value["body"])


def check(lines: Iterable[bytes], endpoint: str, most: int) -> tuple[list[dict[str, Any]], int, str]:
    """Check a file; returns its mistakes in OpenAI's form, how many requests there are, and the model if it is one."""
    errors: list[dict[str, Any]] = []
    known: set[str] = set()
    models: set[str] = set()
    for number, data in enumerate(lines, 1):
        if not data.strip():
            continue
        found = _mistake(data, endpoint, known, models)
        if found is not None:
            code, message, param = found
            errors.append({"code": code, "line": number, "message": message, "param": param})
        if len(errors) >= MOST_ERRORS or len(known) > most:
            break
    if len(known) > most:
        errors.append(whole("too_many_requests", f"the file has more than {most} requests"))
    if not known and not errors:
        errors.append(whole("empty_file", "the file has no requests"))
    return errors, len(known), models.pop() if len(models) == 1 else ""


def whole(code: str, message: str) -> dict[str, Any]:
    """Return a mistake of the file as a whole."""
    return {"code": code, "line": None, "message": message, "param": None}


def _mistake(data: bytes, endpoint: str, known: set[str], models: set[str]) -> tuple[str, str, str | None] | None:
    """Return (code, message, parameter) of what is wrong with a line; otherwise its id and model are noted."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        return "invalid_json_line", f"the line is not valid JSON: {error}", None
    if not isinstance(value, dict):
        return "invalid_json_line", "the line must be a JSON object", None
    if unknown := sorted(set(value) - KEYS):
        return "unknown_parameter", f"unknown parameter: {unknown[0]}", unknown[0]
    if missing := sorted(KEYS - set(value)):
        return "missing_required_parameter", f"{missing[0]} is required", missing[0]
    custom_id, body = value["custom_id"], value["body"]
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= LONGEST_ID:
        return "invalid_custom_id", f"custom_id must be a text of 1 to {LONGEST_ID} characters", "custom_id"
    if custom_id in known:
        return "duplicate_custom_id", f"the custom_id {custom_id!r} is that of an earlier line", "custom_id"
    if value["method"] != "POST":
        return "invalid_method", "method must be POST", "method"
    if value["url"] != endpoint:
        return "invalid_url", f"url must be {endpoint}, as the batch says", "url"
    if not isinstance(body, dict):
        return "invalid_body", "body must be an object", "body"
    if too_deep(data, body):
        return "invalid_body", f"body is nested more than {MOST_DEEP} levels deep", "body"
    if not isinstance(body.get("model"), str) or not body["model"]:
        return "missing_required_parameter", "body.model is required", "body.model"
    for name in ("stream", "background"):
        if body.get(name):
            return "unsupported_parameter", f"{name} is not supported in a batch", f"body.{name}"
    known.add(custom_id)
    models.add(body["model"])
    return None


def answered(line: Line, request_id: str, answer: Answered) -> Result:
    """Return the result of a line that a model, or a refusal, answered."""
    try:
        body = orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        body = {"error": {"message": "the answer is no JSON", "type": "server_error", "param": None, "code": None}}
    told = {"status_code": answer.status, "request_id": request_id, "body": body}
    prompt, written = tokens(body)
    good = 200 <= answer.status < 300
    return Result(line.number, good, _line(line, told, None), prompt if good else 0, written if good else 0)


def failed(line: Line, code: str, message: str) -> Result:
    """Return the result of a line that nobody answered."""
    return Result(line.number, False, _line(line, None, {"code": code, "message": message}))


def _line(line: Line, response: Any, error: Any) -> str:
    id = f"batch_req_{secrets.token_hex(12)}"
    return json.dumps({"id": id, "custom_id": line.custom_id, "response": response, "error": error}, ensure_ascii=False)


def tokens(body: Any) -> tuple[int, int]:
    """Return the tokens of prompt and answer that an answer counts."""
    usage = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(usage, dict):
        return 0, 0
    pairs = (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens"))
    found = [next((usage[name] for name in names if isinstance(usage.get(name), int)), 0) for names in pairs]
    return found[0], found[1]
