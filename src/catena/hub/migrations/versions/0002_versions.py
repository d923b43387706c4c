"""Commits, branches, and the deny-list of erased rows."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "commits",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(200), nullable=False, index=True),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_table(
        "branch_moves",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("branch", sa.String(100), nullable=False),
        sa.Column("commit", sa.String(64), nullable=True),
        sa.Column("moved", sa.DateTime(timezone=True), nullable=False),
        sa.Column("by", sa.String(200), nullable=False),
    )
    op.create_index("branch_moves_name_branch", "branch_moves", ["name", "branch"])
    op.create_table(
        "erased",
        sa.Column("row", sa.String(200), primary_key=True),
        sa.Column("mark", sa.String(64), primary_key=True),
        sa.Column("erasure", sa.String(40), nullable=False, index=True),
    )
