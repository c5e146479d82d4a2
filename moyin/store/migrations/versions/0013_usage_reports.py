"""Record key, requested model and error of calls, with indexes for `GET /v1/requests`."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"

_INDEXES = {
    "ix_usage_owner_created_at_id": ("owner", "created_at", "id"),
    "ix_usage_created_at_id": ("created_at", "id"),
    "ix_usage_owner_key_id": ("owner", "key_id", "created_at", "id"),
    "ix_usage_owner_model": ("owner", "model", "created_at", "id"),
    "ix_usage_owner_backend": ("owner", "backend", "created_at", "id"),
    "ix_usage_owner_requested_model": ("owner", "requested_model", "created_at", "id"),
}


def upgrade() -> None:
    op.add_column("usage", sa.Column("key_id", sa.String(64), nullable=True))
    op.add_column("usage", sa.Column("requested_model", sa.String(256), nullable=True))
    op.add_column("usage", sa.Column("error", sa.String(64), nullable=True))
    op.drop_index("ix_usage_owner_created_at", "usage")
    for name, columns in _INDEXES.items():
        op.create_index(name, "usage", list(columns))
    op.create_index(
        "ix_usage_not_complete",
        "usage",
        ["owner", "created_at", "id"],
        sqlite_where=sa.text("complete = 0"),
        postgresql_where=sa.text("NOT complete"),
    )


def downgrade() -> None:
    for name in ("ix_usage_not_complete", *_INDEXES):
        op.drop_index(name, "usage")
    op.create_index("ix_usage_owner_created_at", "usage", ["owner", "created_at"])
    for column in ("error", "requested_model", "key_id"):
        op.drop_column("usage", column)
