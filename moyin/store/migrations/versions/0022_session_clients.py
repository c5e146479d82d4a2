"""Add the time at which a session was last used, and the client that used it."""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"


def upgrade() -> None:
    op.add_column("sessions", sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("sessions", sa.Column("address", sa.String(64), nullable=True))
    op.add_column("sessions", sa.Column("user_agent", sa.String(256), nullable=True))


def downgrade() -> None:
    for column in ("user_agent", "address", "last_used_at"):
        op.drop_column("sessions", column)
