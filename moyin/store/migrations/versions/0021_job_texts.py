"""Add a table with the words of jobs for searches, with an index of FTS5 or GIN.

Existing jobs get no words, because their texts are in the artifact store.
"""

import sqlalchemy as sa
from alembic import op

from moyin.errors import StackError

revision = "0021"
down_revision = "0020"

_SQLITE = (
    # The words are in `job_texts` only, and their positions are not needed.
    "CREATE VIRTUAL TABLE job_words USING fts5(words, content='job_texts', content_rowid='number', "
    "tokenize='ascii', detail='none', columnsize=0)",
    "CREATE TRIGGER job_texts_insert AFTER INSERT ON job_texts BEGIN "
    "INSERT INTO job_words(rowid, words) VALUES (new.number, new.words); END",
    "CREATE TRIGGER job_texts_delete AFTER DELETE ON job_texts BEGIN "
    "INSERT INTO job_words(job_words, rowid, words) VALUES ('delete', old.number, old.words); END",
)
# New words wait in a list that each search reads, and that a submission merges when it is full.
_POSTGRESQL = (
    "CREATE INDEX ix_job_texts_words ON job_texts USING gin (string_to_array(words, ' ')) "
    "WITH (gin_pending_list_limit = 512)",
)


def upgrade() -> None:
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    if is_sqlite:
        _require_fts5()
    op.create_table(
        "job_texts",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column(
            "job_id", sa.String(36), sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False
        ),
        sa.Column("words", sa.Text, nullable=False),
        sa.UniqueConstraint("job_id"),
    )
    for statement in _SQLITE if is_sqlite else _POSTGRESQL:
        op.execute(statement)


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.drop_table("job_words")
    op.drop_table("job_texts")


def _require_fts5() -> None:
    query = sa.text("SELECT 1 FROM pragma_module_list WHERE name = 'fts5'")
    if op.get_bind().execute(query).first() is None:
        raise StackError("Python's SQLite was built without FTS5; use a Python that has it")
