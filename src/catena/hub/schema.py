"""The tables of the index, and bringing a database to the newest form of them.

artifacts   one row for each artifact; `body` is its JSON
names       name@1, name@2, ...: which artifact each version of a name is
tag_moves   every move of every tag, in order: the last one counts, the rest is the change log
runs        one row for each execution of a stage; `body` is its JSON
run_inputs  which artifacts each run was given: the edges of lineage, in a form that can be asked backwards
commits     one row for each commit of a dataset's name; `body` is its JSON, and its SHA-256 the key
branch_moves  every move of every branch, in order: the last one counts
erased      rows that must not come back: id, and the keyed hash of their data
api_keys    one row for each key of the server; `body` is its JSON with the hash, never the secret
repo_commits  one row for each commit of a repository of the hub; `body` is its JSON with the list of its files
repo_moves  every move of every branch and tag of a repository, in order: the last one counts
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import (
    Column,
    DateTime,
    Engine,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    inspect,
    text,
)

from catena.core.errors import WorkspaceTooNew

HEAD = "0004"

metadata = MetaData()

artifacts = Table(
    "artifacts",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("created", DateTime(timezone=True), nullable=False),
    Column("body", Text, nullable=False),
)
names = Table(
    "names",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("digest", String(64), ForeignKey("artifacts.digest"), nullable=False, index=True),
    Column("created", DateTime(timezone=True), nullable=False),
)
tag_moves = Table(
    "tag_moves",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("name", String(200), nullable=False),
    Column("tag", String(100), nullable=False),
    Column("digest", String(64), nullable=True),  # null: the tag was removed
    Column("moved", DateTime(timezone=True), nullable=False),
    Column("by", String(200), nullable=False, default=""),
    Index("tag_moves_name_tag", "name", "tag"),
)
runs = Table(
    "runs",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("run_group", String(40), nullable=False, index=True),
    Column("step", String(200), nullable=False),
    Column("stage", String(200), nullable=False),
    Column("status", String(16), nullable=False),
    Column("key", String(64), nullable=False, index=True),
    Column("output", String(64), nullable=True, index=True),
    Column("started", DateTime(timezone=True), nullable=False),
    Column("body", Text, nullable=False),
)
run_inputs = Table(
    "run_inputs",
    metadata,
    Column("run", String(40), ForeignKey("runs.id"), primary_key=True),
    Column("input", String(100), primary_key=True),
    Column("digest", String(64), nullable=False, index=True),
)
commits = Table(
    "commits",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("name", String(200), nullable=False, index=True),
    Column("body", Text, nullable=False),
)
branch_moves = Table(
    "branch_moves",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("name", String(200), nullable=False),
    Column("branch", String(100), nullable=False),
    Column("commit", String(64), nullable=True),  # null: the branch was removed
    Column("moved", DateTime(timezone=True), nullable=False),
    Column("by", String(200), nullable=False, default=""),
    Index("branch_moves_name_branch", "name", "branch"),
)
erased = Table(
    "erased",
    metadata,
    Column("row", String(200), primary_key=True),
    Column("mark", String(64), primary_key=True),
    Column("erasure", String(40), nullable=False, index=True),
)
api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("created", DateTime(timezone=True), nullable=False),
    Column("body", Text, nullable=False),
)
repo_commits = Table(
    "repo_commits",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("name", String(200), nullable=False),
    Column("body", Text, nullable=False),
    Index("repo_commits_of", "kind", "name"),
)
repo_moves = Table(
    "repo_moves",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("kind", String(16), nullable=False),
    Column("name", String(200), nullable=False),
    Column("ref", String(200), nullable=False),
    Column("commit", String(40), nullable=True),  # null: the branch or tag was removed
    Column("moved", DateTime(timezone=True), nullable=False),
    Column("by", String(200), nullable=False, default=""),
    Index("repo_moves_of", "kind", "name"),
)


def current_version(engine: Engine) -> str | None:
    """Return the schema version of a database, or None for an empty one."""
    with engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def upgrade(engine: Engine) -> None:
    """Bring a database to `HEAD`. The caller holds a lock. Raises `WorkspaceTooNew` for a version we do not know."""
    found = current_version(engine)
    if found == HEAD:
        return
    # Alembic is only imported when there is something to do: it costs more than most commands.
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    known = {revision.revision for revision in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise WorkspaceTooNew(
            f"the workspace's index has schema {found}; this Catena knows up to {HEAD}",
            hint="Install the Catena that wrote it, or a newer one.",
        )
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
