"""Record which limits a key inherits from the key that created it.

Keys that exist already inherit none, since their creators were not recorded.
"""

import sqlalchemy as sa
from alembic import op

revision = "0028"
down_revision = "0027"


def upgrade() -> None:
    op.create_table(
        "inherited_limits",
        sa.Column("key_id", sa.String(32), sa.ForeignKey("api_keys.id"), primary_key=True),
        sa.Column("subject", sa.String(160), primary_key=True),
    )
    op.create_index("ix_inherited_limits_subject", "inherited_limits", ["subject"])


def downgrade() -> None:
    op.drop_table("inherited_limits")
