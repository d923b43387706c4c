"""`GET /openapi.json`: what this server takes, made from the classes that check it, so that the two cannot differ."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from starlette.routing import BaseRoute, Route

from catena.serve.endpoint import Endpoint
from catena.serve.rules import Rules
from catena.serve.wire import Body

VERSION = "1"
ACTION = "x-catena-action"
"""What a key must be allowed to do (docs/governance.md)."""
PAGE = """<!doctype html><meta charset="utf-8"><title>{title}</title>
<style>body{{font:15px sans-serif;margin:2em}}td,th{{text-align:left;padding:.2em 1em .2em 0}}</style>
<h1>{title}</h1><p>The whole of it, for programs: <a href="openapi.json">openapi.json</a>.</p>
<table><tr><th>method<th>path<th>action<th>what it does</tr>
{rows}
</table>
"""
ERRORS: Mapping[str, str] = {
    "400": "The request makes no sense; the error names the field.",
    "404": "There is no such model.",
    "408": "The body did not arrive in time.",
    "413": "The body is too long.",
    "415": "The body is not declared as JSON.",
    "422": "The model cannot be used for this.",
    "503": "Too much is on its way; Retry-After says when to come back.",
}


def document(
    endpoints: Mapping[str, type[Endpoint[Any]]],
    pages: Mapping[str, str],
    models: Sequence[str],
    others: Iterable[BaseRoute] = (),
    *,
    secured: bool = False,
) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document: POST `endpoints`, GET `pages` (path to what they tell), names of `models`.

    Of `others` it says path, method, and what their functions say of themselves; of each, who may use it, where keys
    are asked for (`secured`).
    """
    schemas: dict[str, Any] = {"Error": ERROR}
    paths: dict[str, Any] = {}
    for path, endpoint in endpoints.items():
        name = endpoint.body.__name__
        schemas[name] = _schema(endpoint.body, models, schemas)
        paths[path] = {"post": _operation(endpoint, name)}
    for path, summary in pages.items():
        paths[path] = {"get": _page(path, summary, models)}
    for route in others:
        if isinstance(route, Route) and route.path not in paths:
            plain = route.path.replace(":path}", "}")
            paths[plain] = {**paths.get(plain, {}), **_operations(route, plain)}
    _tell_rules(paths, secured)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Catena", "version": VERSION, "description": "Models behind the OpenAI HTTP form."},
        "paths": paths,
        "components": {
            "schemas": schemas,
            **({"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}} if secured else {}),
        },
    }


def page(told: Mapping[str, Any]) -> str:
    """Return the document as a page for people: one HTML file, nothing fetched from elsewhere."""
    rows = []
    for path, operations in sorted(told["paths"].items()):
        for method, operation in operations.items():
            cells = (method.upper(), path, operation.get(ACTION, ""), operation.get("summary", ""))
            rows.append("<tr>" + "".join(f"<td>{html.escape(str(one))}</td>" for one in cells) + "</tr>")
    return PAGE.format(title=html.escape(told["info"]["title"]), rows="\n".join(rows))


def _operations(route: Route, path: str) -> dict[str, Any]:
    names = re.findall(r"{(\w+)}", path)
    given = [{"name": one, "in": "path", "required": True, "schema": {"type": "string"}} for one in names]
    said = (getattr(route.endpoint, "__doc__", "") or "").strip().partition("\n")[0]
    answers = {"default": {"description": "The answer, or an error that says what is wrong."}}
    told: dict[str, Any] = {"summary": said or path, "responses": answers}
    if given:
        told["parameters"] = given
    return {method.lower(): dict(told) for method in sorted((route.methods or set()) - {"HEAD"})}


def _tell_rules(paths: Mapping[str, dict[str, Any]], secured: bool) -> None:
    rules = Rules()
    for path, operations in paths.items():
        for method, operation in operations.items():
            action = rules.action(method.upper(), path.replace("{", "").replace("}", ""))
            operation[ACTION] = action
            if secured and action != "public":
                operation["security"] = [{"key": []}]


def _operation(endpoint: type[Endpoint[Any]], name: str) -> dict[str, Any]:
    answers: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if "stream" in endpoint.body.model_fields:
        answers["text/event-stream"] = {"schema": {"type": "string"}}
    failed = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    return {
        "operationId": endpoint.route,
        "summary": (endpoint.__doc__ or "").strip(),
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}},
        },
        "responses": {
            "200": {"description": "The answer.", "content": answers},
            **{status: {"description": text, **failed} for status, text in ERRORS.items()},
        },
    }


def _page(path: str, summary: str, models: Sequence[str]) -> dict[str, Any]:
    kind = "text/plain" if path == "/metrics" else "application/json"
    responses: dict[str, Any] = {"200": {"description": summary, "content": {kind: {}}}}
    operation: dict[str, Any] = {"summary": summary, "responses": responses}
    if "{" in path:
        schema = {"type": "string", "enum": list(models)}
        operation["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": schema}]
    return operation


def _schema(body: type[Body], models: Sequence[str], schemas: dict[str, Any]) -> dict[str, Any]:
    """Return a body's JSON schema; the classes inside it are added to `schemas`."""
    told = body.model_json_schema(ref_template="#/components/schemas/{model}", by_alias=True)
    for name, inner in told.pop("$defs", {}).items():
        schemas[name] = _with_nulls(inner)
    told["properties"]["model"] = {"type": "string", "enum": list(models)}
    for name, neutral in body.NEUTRAL.items():
        told["properties"][name] = {"enum": [*neutral]} if neutral else {"type": "null"}
    return _with_nulls(told)


def _with_nulls(schema: dict[str, Any]) -> dict[str, Any]:
    """Return an object's schema in which null counts as absent."""
    required: Iterable[str] = schema.get("required", ())
    properties = {
        name: inner if name in required else {"anyOf": [inner, {"type": "null"}]}
        for name, inner in schema.get("properties", {}).items()
    }
    return {**schema, "properties": properties} if properties else schema


ERROR: Mapping[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
