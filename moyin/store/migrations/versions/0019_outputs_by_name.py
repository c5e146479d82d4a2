"""Add an index that finds the newest output with a given file name.

PostgreSQL builds the index while jobs run, outside of a transaction. An interrupted migration can
be run again: an index that exists already is kept.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"

_NAME = "ix_artifacts_outputs_by_name"
_CONDITION = sa.text("job_id IS NOT NULL AND deleted_at IS NULL")


def upgrade() -> None:
    if not _is_postgresql():
        _create_index()
        return
    with op.get_context().autocommit_block():
        _drop_if_invalid()
        _create_index(if_not_exists=True, postgresql_concurrently=True)


def downgrade() -> None:
    if not _is_postgresql():
        op.drop_index(_NAME, "artifacts")
        return
    with op.get_context().autocommit_block():
        op.drop_index(_NAME, "artifacts", if_exists=True, postgresql_concurrently=True)


def _is_postgresql() -> bool:
    return op.get_bind().dialect.name == "postgresql"


def _create_index(**options: Any) -> None:
    op.create_index(
        _NAME,
        "artifacts",
        ["owner", "name", "created_at", "id"],
        sqlite_where=_CONDITION,
        postgresql_where=_CONDITION,
        **options,
    )


def _drop_if_invalid() -> None:
    """Drop the unusable index that an interrupted construction has left, if there is one."""
    query = sa.text(
        "SELECT 1 FROM pg_index JOIN pg_class ON pg_class.oid = pg_index.indexrelid "
        "WHERE relname = :name AND NOT indisvalid AND pg_table_is_visible(pg_class.oid)"
    )
    if op.get_bind().execute(query, {"name": _NAME}).first() is not None:
        op.drop_index(_NAME, "artifacts", postgresql_concurrently=True)
