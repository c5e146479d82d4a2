"""Who may use which priority class"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("limits", sa.Column("best_priority", sa.Integer(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("limits", schema=None) as batch_op:
        batch_op.drop_column("best_priority")
