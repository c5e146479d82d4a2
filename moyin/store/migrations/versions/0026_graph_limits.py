"""Add limits on the size of graphs."""

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"

_COLUMNS = ("graph_nodes", "graph_links", "graph_bytes")


def upgrade() -> None:
    for column in _COLUMNS:
        op.add_column("limits", sa.Column(column, sa.Integer, nullable=True))


def downgrade() -> None:
    for column in reversed(_COLUMNS):
        op.drop_column("limits", column)
