"""Limits of pools and of node classes"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_COLUMNS = ("pools", "allowed_nodes", "denied_nodes")


def upgrade() -> None:
    with op.batch_alter_table("limits", schema=None) as batch_op:
        for name in _COLUMNS:
            batch_op.add_column(sa.Column(name, sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("limits", schema=None) as batch_op:
        for name in reversed(_COLUMNS):
            batch_op.drop_column(name)
