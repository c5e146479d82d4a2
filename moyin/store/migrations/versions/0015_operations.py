"""Add ledger columns for calls besides chats and embeddings: operation, unit and quantity."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.add_column("usage", sa.Column("operation", sa.String(32), nullable=True))
    op.add_column("usage", sa.Column("unit", sa.String(16), nullable=True))
    op.add_column("usage", sa.Column("quantity", sa.BigInteger, nullable=True))


def downgrade() -> None:
    for column in ("quantity", "unit", "operation"):
        op.drop_column("usage", column)
