"""Signals of the quality of answers"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "quality_decisions",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("owner", sa.String(length=128), nullable=False),
        sa.Column("request_id", sa.String(length=128), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("question", sa.JSON(), nullable=False),
        sa.Column("p_good", sa.Float(), nullable=False),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_quality_decisions")),
    )
    op.create_index(
        "ix_quality_decisions_owner_request_id", "quality_decisions", ["owner", "request_id"]
    )
    op.create_index("ix_quality_decisions_created_at", "quality_decisions", ["created_at"])
    op.create_table(
        "quality_signals",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("owner", sa.String(length=128), nullable=False),
        sa.Column("request_id", sa.String(length=128), nullable=False),
        sa.Column("key_id", sa.String(length=64), nullable=False),
        sa.Column("source", sa.String(length=16), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("question", sa.JSON(), nullable=True),
        sa.Column("score", sa.Float(), nullable=False),
        sa.Column("weight", sa.Float(), nullable=False),
        sa.Column("p_good", sa.Float(), nullable=True),
        sa.Column("comment", sa.String(length=2000), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_quality_signals")),
        sa.UniqueConstraint(
            "owner",
            "request_id",
            "key_id",
            "source",
            name=op.f("uq_quality_signals_owner_request_id_key_id_source"),
        ),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_quality_signals_created_at", "quality_signals", ["created_at"])
    op.create_table(
        "quality_states",
        sa.Column("owner", sa.String(length=128), nullable=False),
        sa.Column("state", sa.JSON(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("owner", name=op.f("pk_quality_states")),
    )


def downgrade() -> None:
    op.drop_table("quality_states")
    op.drop_table("quality_signals")
    op.drop_table("quality_decisions")
