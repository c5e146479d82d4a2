"""Add a favourite mark to artifacts, with an index that lists favourites."""

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"

_NAME = "ix_artifacts_favourites"
# As SQLAlchemy writes a condition on a boolean for each database: SQLite compares the texts.
_SQLITE_CONDITION = sa.text("favourite = 1 AND deleted_at IS NULL")
_POSTGRESQL_CONDITION = sa.text("favourite AND deleted_at IS NULL")


def upgrade() -> None:
    op.add_column(
        "artifacts", sa.Column("favourite", sa.Boolean, nullable=False, server_default=sa.false())
    )
    # No row meets the condition yet, so that the index is made at once.
    op.create_index(
        _NAME,
        "artifacts",
        ["owner", "favourite", "created_at", "id"],
        sqlite_where=_SQLITE_CONDITION,
        postgresql_where=_POSTGRESQL_CONDITION,
    )


def downgrade() -> None:
    op.drop_index(_NAME, "artifacts")
    op.drop_column("artifacts", "favourite")
