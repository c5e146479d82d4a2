"""Extend the index of a tenant's calls, so that usage reports read only the index.

The index gets the columns that reports sum or group by, such as tokens and costs.

PostgreSQL builds the index while calls are recorded, outside of a transaction. An interrupted
migration can be run again: indexes that exist already are kept.
"""

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"

_PLAIN_INDEX = ("ix_usage_owner_created_at_id", ("owner", "created_at", "id"))
_SUMS_INDEX = (
    "ix_usage_sums",
    (
        "owner", "created_at", "id", "complete", "unit", "model", "input_tokens", "cached_tokens",
        "output_tokens", "quantity", "load_milliseconds", "cost_nano_usd",
    ),
)  # fmt: skip


def upgrade() -> None:
    _replace(_PLAIN_INDEX, _SUMS_INDEX)


def downgrade() -> None:
    _replace(_SUMS_INDEX, _PLAIN_INDEX)


def _replace(old: tuple[str, tuple[str, ...]], new: tuple[str, tuple[str, ...]]) -> None:
    name, columns = new
    if op.get_bind().dialect.name != "postgresql":
        op.create_index(name, "usage", list(columns))
        op.drop_index(old[0], "usage")
        return
    with op.get_context().autocommit_block():
        _drop_if_invalid(name)
        op.create_index(
            name, "usage", list(columns), if_not_exists=True, postgresql_concurrently=True
        )
        op.drop_index(old[0], "usage", if_exists=True, postgresql_concurrently=True)


def _drop_if_invalid(name: str) -> None:
    """Drop an index whose construction was interrupted: it exists, but is not used."""
    query = sa.text(
        "SELECT 1 FROM pg_index JOIN pg_class ON pg_class.oid = pg_index.indexrelid "
        "WHERE relname = :name AND NOT indisvalid AND pg_table_is_visible(pg_class.oid)"
    )
    if op.get_bind().execute(query, {"name": name}).first() is not None:
        op.drop_index(name, "usage", postgresql_concurrently=True)
