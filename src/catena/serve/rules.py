"""Which action each route needs: the whole table. A route without a line here does not start.

A path is written as the router writes it. Where methods differ, `{"GET": ..., "POST": ...}` stands for the action.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from re import Pattern

from starlette.routing import BaseRoute, Mount, Route, compile_path

from catena.core.errors import ConfigError
from catena.govern.roles import Action

Rule = Action | Mapping[str, Action]

RULES: Mapping[str, Rule] = {
    "/v1/chat/completions": "infer",
    "/v1/completions": "infer",
    "/v1/responses": "infer",
    "/v1/embeddings": "infer",
    "/v1/classify": "infer",
    "/v1/decisions": "infer",
    "/tokenize": "infer",
    "/detokenize": "infer",
    "/v1/load_lora_adapter": {"POST": "releases"},
    "/v1/unload_lora_adapter": {"POST": "releases"},
    "/v1/feedback": {"GET": "data", "POST": "feedback"},
    "/v1/feedback/{id}": {"GET": "data"},
    "/v1/responses/{id}": "jobs",
    "/v1/responses/{id}/cancel": "jobs",
    "/v1/files": "jobs",
    "/v1/files/{id}": "jobs",
    "/v1/files/{id}/content": "jobs",
    "/v1/batches": "jobs",
    "/v1/batches/{id}": "jobs",
    "/v1/batches/{id}/cancel": "jobs",
    "/v1/models": "models",
    "/v1/models/{name:path}": "models",
    "/health": "public",
    "/ready": "public",
    "/admin/keys": {"GET": "keys", "POST": "keys"},
    "/admin/keys/{id}": {"GET": "keys", "POST": "keys"},
    "/admin/audit": {"GET": "audit"},
    "/admin/lineage/{ref:path}": {"GET": "data"},
    "/admin/releases": "releases",
    "/admin/releases/{model:path}": "releases",
    "/metrics": "metrics",
    "/console/{path:path}": "public",  # it signs people in itself, and has a rule for each page
    "/openapi.json": "public",
    "/docs": "public",
}


class Rules:
    """Answers which action a request needs."""

    def __init__(self, rules: Mapping[str, Rule] = RULES) -> None:
        self._exact = {path: rule for path, rule in rules.items() if "{" not in path}
        self._patterns: list[tuple[Pattern[str], Rule]] = [
            (compile_path(path)[0], rule) for path, rule in rules.items() if "{" in path
        ]

    def action(self, method: str, path: str) -> Action | None:
        """Return the action that a request needs; None for what is no route, or not with this method."""
        rule = self._exact.get(path)
        if rule is None:
            rule = next((rule for pattern, rule in self._patterns if pattern.match(path)), None)
        if rule is None or isinstance(rule, str):
            return rule
        return rule.get("GET" if method == "HEAD" else method)


def require_rules(routes: Iterable[BaseRoute], rules: Mapping[str, Rule] = RULES) -> None:
    """Raise `ConfigError` for the first route that has no rule: nothing is reachable by having been forgotten."""
    for route in routes:
        if isinstance(route, Mount):
            path, methods = f"{route.path}/{{path:path}}", set[str]()
        elif isinstance(route, Route):
            path, methods = route.path, set(route.methods or ())
        else:
            path, methods = str(getattr(route, "path", route)), set[str]()
        rule = rules.get(path)
        missing = [] if isinstance(rule, str) else sorted(methods - {"HEAD"} - set(rule or ())) or ([path] * (not rule))
        if missing:
            raise ConfigError(
                f"the route {path} has no rule for who may use it" + (f" ({', '.join(missing)})" if rule else ""),
                hint="Give it a line in RULES of serve/rules.py.",
            )
