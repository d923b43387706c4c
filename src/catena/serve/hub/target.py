"""From a request's path to what it asks for. Pure; the only place that takes paths apart.

    /api/models/org/name/tree/main/sub     kind model, name org/name, verb tree, revision main, path sub
    /datasets/org/name/resolve/v1/a.json   kind dataset, verb resolve
    /org/name.git/info/lfs/objects/batch   kind model, verb lfs
    /api/repos/create, /api/whoami-v2 ...  no repository: the verb alone

It reads the path as it was sent: a revision may hold `%2F`, which is no separator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from catena.core.errors import UsageError
from catena.govern.roles import Action
from catena.hub.repo.records import RepoKind

PLURALS: Mapping[str, RepoKind] = {"models": "model", "datasets": "dataset"}
PREFIXES: Mapping[str, str] = {"model": "", "dataset": "datasets/"}
API_VERBS = (
    "revision",
    "tree",
    "paths-info",
    "refs",
    "commits",
    "preupload",
    "commit",
    "branch",
    "tag",
    "settings",
    "discussions",
    "xet-read-token",
    "xet-write-token",
)
LONE = {
    ("api", "whoami-v2"): "whoami",
    ("api", "validate-yaml"): "validate-yaml",
    ("api", "repos", "create"): "create",
    ("api", "repos", "delete"): "delete",
    ("api", "repos", "move"): "move",
    ("api", "models"): "list",
    ("api", "datasets"): "list",
    ("health",): "health",
}
ACTIONS: Mapping[tuple[str, str], Action] = {
    ("health", "GET"): "public",
    ("upload", "PUT"): "public",  # the address itself is signed
    ("whoami", "GET"): "pull",
    ("list", "GET"): "pull",
    ("info", "GET"): "pull",
    ("revision", "GET"): "pull",
    ("tree", "GET"): "pull",
    ("paths-info", "POST"): "pull",
    ("refs", "GET"): "pull",
    ("commits", "GET"): "pull",
    ("resolve", "GET"): "pull",
    ("validate-yaml", "POST"): "pull",
    ("xet-read-token", "GET"): "pull",
    ("xet-write-token", "GET"): "push",
    ("create", "POST"): "push",
    ("preupload", "POST"): "push",
    ("lfs", "POST"): "push",
    ("verify", "POST"): "push",
    ("commit", "POST"): "push",
    ("branch", "POST"): "push",
    ("tag", "POST"): "push",
    ("branch", "DELETE"): "admin",
    ("tag", "DELETE"): "admin",
    ("discussions", "POST"): "push",
    ("settings", "PUT"): "admin",
    ("delete", "DELETE"): "admin",
    ("move", "POST"): "admin",
}
"""Which action each verb needs, with which method: what is not here is no route."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a request asks for."""

    verb: str
    kind: RepoKind = "model"
    name: str = ""
    revision: str = ""
    path: str = ""

    def action(self, method: str) -> Action | None:
        """Return the action that is needed; None for what is no route, or not with this method."""
        return ACTIONS.get((self.verb, "GET" if method == "HEAD" else method))


def target_of(raw_path: str) -> Target | None:
    """Return what a path, as it was sent and without its query, asks for; None for what is no route.

    Raises `UsageError` for a path that is not UTF-8.
    """
    try:
        parts = [unquote(part, errors="strict") for part in raw_path.split("/")[1:]]
    except UnicodeDecodeError as error:
        raise UsageError("the path is not UTF-8") from error
    if tuple(parts) in LONE:
        return Target(LONE[tuple(parts)], PLURALS.get(parts[-1], "model"))
    if parts[0] == "api":
        return _api(parts[1:])
    if parts[0] == "lfs" and len(parts) in (2, 3):
        return Target("verify" if parts[-1] == "verify" else "upload", path=parts[1])
    return _files(parts)


def _api(parts: list[str]) -> Target | None:
    kind = PLURALS.get(parts[0]) if parts else None
    rest = parts[1:]
    if kind is None or not rest:
        return None
    for length in (2, 1):
        if len(rest) > length and rest[length] in API_VERBS:
            name, verb, after = "/".join(rest[:length]), rest[length], rest[length + 1 :]
            return Target(verb, kind, name, after[0] if after else "", "/".join(after[1:]))
    return Target("info", kind, "/".join(rest)) if len(rest) <= 2 else None


def _files(parts: list[str]) -> Target | None:
    kind: RepoKind = "model"
    if parts[0] in PLURALS:
        kind, parts = PLURALS[parts[0]], parts[1:]
    for length in (1, 2):
        rest = parts[length:]
        if len(parts) <= length:
            break
        name = "/".join(parts[:length])
        if name.endswith(".git") and rest == ["info", "lfs", "objects", "batch"]:
            return Target("lfs", kind, name.removesuffix(".git"))
        if len(rest) >= 3 and rest[0] in ("resolve", "raw"):
            return Target("resolve", kind, name, rest[1], "/".join(rest[2:]))
    return None
