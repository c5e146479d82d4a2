"""Redefine ``started_at`` as the time at which a renderer began, and add ``queued_at`` to jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"

_SINGLE_RENDERS = "kind = 'render' AND children IS NULL"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("queued_at", sa.DateTime(timezone=True), nullable=True))
    # Until now, a render was running from the start of its workflow, also while it waited.
    op.execute(
        f"UPDATE jobs SET started_at = begun_at WHERE {_SINGLE_RENDERS} AND begun_at IS NOT NULL"
    )
    op.execute(
        "UPDATE jobs SET status = 'queued', started_at = NULL "
        f"WHERE {_SINGLE_RENDERS} AND status = 'running' AND begun_at IS NULL"
    )
    # A render that ended while it waited never began, and neither did a queued retry.
    op.execute(
        f"UPDATE jobs SET started_at = NULL WHERE {_SINGLE_RENDERS} AND begun_at IS NULL "
        "AND status IN ('failed', 'cancelled')"
    )
    op.execute("UPDATE jobs SET started_at = NULL WHERE status = 'queued'")
    op.drop_column("jobs", "begun_at")


def downgrade() -> None:
    op.add_column("jobs", sa.Column("begun_at", sa.DateTime(timezone=True), nullable=True))
    op.execute(f"UPDATE jobs SET begun_at = started_at WHERE {_SINGLE_RENDERS}")
    op.drop_column("jobs", "queued_at")
