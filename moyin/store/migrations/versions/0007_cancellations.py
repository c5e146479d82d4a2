"""Prompts of ComfyUI's API, and who cancelled a job"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("comfyui", sa.Boolean(), server_default=sa.false(), nullable=False)
        )
        batch_op.add_column(sa.Column("cancelled_by", sa.JSON(), nullable=True))
    # Of the prompts of before, those with a client are known.
    op.execute(sa.text("UPDATE jobs SET comfyui = true WHERE channel IS NOT NULL"))


def downgrade() -> None:
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.drop_column("cancelled_by")
        batch_op.drop_column("comfyui")
