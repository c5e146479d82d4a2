"""Record key, requested model and error of calls, with indexes for `GET /v1/requests`.

PostgreSQL builds the indexes while calls are recorded, outside of a transaction. An interrupted
migration can be run again: existing columns and indexes are kept.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"

_COLUMNS = {"key_id": 64, "requested_model": 256, "error": 64}
_OLD_INDEX = {"ix_usage_owner_created_at": ("owner", "created_at")}
_INDEXES = {
    "ix_usage_owner_created_at_id": ("owner", "created_at", "id"),
    "ix_usage_created_at_id": ("created_at", "id"),
    "ix_usage_owner_key_id": ("owner", "key_id", "created_at", "id"),
    "ix_usage_owner_model": ("owner", "model", "created_at", "id"),
    "ix_usage_owner_backend": ("owner", "backend", "created_at", "id"),
    "ix_usage_owner_requested_model": ("owner", "requested_model", "created_at", "id"),
    "ix_usage_not_complete": ("owner", "created_at", "id"),
}
_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "ix_usage_not_complete": {
        "sqlite_where": sa.text("complete = 0"),
        "postgresql_where": sa.text("NOT complete"),
    }
}


def upgrade() -> None:
    for name, length in _COLUMNS.items():
        column = sa.Column(name, sa.String(length), nullable=True)
        op.add_column("usage", column, if_not_exists=_is_postgresql() or None)
    _replace_indexes(_OLD_INDEX, _INDEXES)


def downgrade() -> None:
    _replace_indexes(_INDEXES, _OLD_INDEX)
    for name in _COLUMNS:
        op.drop_column("usage", name, if_exists=_is_postgresql() or None)


def _is_postgresql() -> bool:
    return op.get_bind().dialect.name == "postgresql"


def _replace_indexes(old: Mapping[str, Sequence[str]], new: Mapping[str, Sequence[str]]) -> None:
    if not _is_postgresql():
        for name in old:
            op.drop_index(name, "usage")
        for name, columns in new.items():
            op.create_index(name, "usage", list(columns), **_OPTIONS.get(name, {}))
        return
    with op.get_context().autocommit_block():
        for name, columns in new.items():
            _drop_if_invalid(name)
            op.create_index(
                name,
                "usage",
                list(columns),
                if_not_exists=True,
                postgresql_concurrently=True,
                **_OPTIONS.get(name, {}),
            )
        for name in old:
            op.drop_index(name, "usage", if_exists=True, postgresql_concurrently=True)


def _drop_if_invalid(name: str) -> None:
    """Drop the unusable index that an interrupted construction has left, if there is one."""
    query = sa.text(
        "SELECT 1 FROM pg_index JOIN pg_class ON pg_class.oid = pg_index.indexrelid "
        "WHERE relname = :name AND NOT indisvalid AND pg_table_is_visible(pg_class.oid)"
    )
    if op.get_bind().execute(query, {"name": name}).first() is not None:
        op.drop_index(name, "usage", postgresql_concurrently=True)
