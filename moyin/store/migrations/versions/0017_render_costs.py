"""Add columns for the cost of a job's renders."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    op.add_column(
        "jobs", sa.Column("render_nano_usd", sa.BigInteger(), nullable=False, server_default="0")
    )


def downgrade() -> None:
    # The version before can read neither the operation nor the unit.
    op.execute("DELETE FROM usage WHERE operation = 'render'")
    op.drop_column("jobs", "render_nano_usd")
