"""Add the ids that clients of ComfyUI's API choose for their prompts."""

import sqlalchemy as sa
from alembic import op

revision = "0027"
down_revision = "0026"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("chosen_id", sa.String(36), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "chosen_id")
