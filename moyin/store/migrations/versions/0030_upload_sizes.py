"""Add the index by which the sizes of a tenant's uploads are summed."""

import sqlalchemy as sa
from alembic import op

revision = "0030"
down_revision = "0029"
_IS_UPLOAD = sa.text("job_id IS NULL AND deleted_at IS NULL")


def upgrade() -> None:
    op.create_index(
        "ix_artifacts_upload_sizes",
        "artifacts",
        ["owner", "job_id", "deleted_at", "size"],
        sqlite_where=_IS_UPLOAD,
        postgresql_where=_IS_UPLOAD,
    )


def downgrade() -> None:
    op.drop_index("ix_artifacts_upload_sizes", "artifacts")
