"""Add a table of money that budgets reserve for renders, and a column for model loading times."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    op.create_table(
        "render_reservations",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("job_id", sa.String(36), nullable=False),
        sa.Column("owner", sa.String(128), nullable=False),
        sa.Column("subjects", sa.JSON(), nullable=False),
        sa.Column("day", sa.String(10), nullable=False),
        sa.Column("month", sa.String(7), nullable=False),
        sa.Column("reserved_nano", sa.BigInteger(), nullable=False),
        sa.Column("counted_nano", sa.BigInteger(), nullable=False),
        sa.Column("booked_nano", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended", sa.Boolean(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
    )
    table = "render_reservations"
    op.create_index("ix_render_reservations_job_id", table, ["job_id", "created_at"])
    op.create_index("ix_render_reservations_due_at", table, ["due_at"])
    op.create_index("ix_render_reservations_settled_at", table, ["settled_at"])
    # Last, since both tables are locked until the end of the transaction.
    op.add_column("usage", sa.Column("load_milliseconds", sa.BigInteger(), nullable=True))
    op.add_column(
        "jobs", sa.Column("reserved", sa.Boolean(), nullable=False, server_default=sa.false())
    )


def downgrade() -> None:
    op.drop_table("render_reservations")
    op.drop_column("jobs", "reserved")
    op.drop_column("usage", "load_milliseconds")
