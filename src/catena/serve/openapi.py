"""`GET /openapi.json`: what this server takes, made from the classes that check it, so that the two cannot differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from catena.serve.endpoint import Endpoint
from catena.serve.wire import Body

VERSION = "1"
ERRORS: Mapping[str, str] = {
    "400": "The request makes no sense; the error names the field.",
    "404": "There is no such model.",
    "408": "The body did not arrive in time.",
    "413": "The body is too long.",
    "415": "The body is not declared as JSON.",
    "422": "The model cannot be used for this.",
    "503": "Too much is on its way; Retry-After says when to come back.",
}


def document(endpoints: Mapping[str, Endpoint[Any]], pages: Mapping[str, str], models: Sequence[str]) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document: POST `endpoints`, GET `pages` (path to what they tell), names of `models`."""
    schemas: dict[str, Any] = {"Error": ERROR}
    paths: dict[str, Any] = {}
    for path, endpoint in endpoints.items():
        name = endpoint.body.__name__
        schemas[name] = _schema(endpoint.body, models, schemas)
        paths[path] = {"post": _operation(endpoint, name)}
    for path, summary in pages.items():
        paths[path] = {"get": _page(path, summary, models)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Catena", "version": VERSION, "description": "Models behind the OpenAI HTTP form."},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _operation(endpoint: Endpoint[Any], name: str) -> dict[str, Any]:
    answers: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if "stream" in endpoint.body.model_fields:
        answers["text/event-stream"] = {"schema": {"type": "string"}}
    failed = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    return {
        "operationId": endpoint.route,
        "summary": (type(endpoint).__doc__ or "").strip(),
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
