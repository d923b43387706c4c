"""A client, plain and asynchronous, for what OpenAI's does not cover.

Decisions, labels, tokens, feedback, jobs, releases, keys, audit, lineage, health; the official client does the rest.

    from catena.sdk import Catena
    with Catena("http://127.0.0.1:8000", key="ctn_...") as catena:
        print(catena.health())

Importing it imports neither torch nor a server.
"""

from catena.sdk.asynchronous import AsyncCatena
from catena.sdk.client import Catena
from catena.sdk.errors import ApiError, Unreachable
from catena.sdk.questions import choice, predicate, score
from catena.sdk.types import (
    AuditEntry,
    Batch,
    ChatPiece,
    Decision,
    Feedback,
    Health,
    Key,
    Label,
    Lineage,
    Model,
    NewKey,
    Ready,
    Release,
    ReleaseAct,
    Tokens,
)

__all__ = [
    "ApiError",
    "AsyncCatena",
    "AuditEntry",
    "Batch",
    "Catena",
    "ChatPiece",
    "Decision",
    "Feedback",
    "Health",
    "Key",
    "Label",
    "Lineage",
    "Model",
    "NewKey",
    "Ready",
    "Release",
    "ReleaseAct",
    "Tokens",
    "Unreachable",
    "choice",
    "predicate",
    "score",
]
