"""What each tenant contributes to the levels that all share"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("quality_states", sa.Column("levels", sa.JSON(none_as_null=True), nullable=True))
    op.create_index("ix_quality_states_updated_at", "quality_states", ["updated_at"])


def downgrade() -> None:
    op.drop_index("ix_quality_states_updated_at", "quality_states")
    op.drop_column("quality_states", "levels")
