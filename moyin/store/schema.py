"""Defines the SQL tables; a test checks that the migrations create the same tables."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    }
)

# Jobs as their workflows record them; Temporal is authoritative about running jobs.
jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("owner", sa.String(128), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("spec", sa.String(64), nullable=False),
    sa.Column("heads", sa.JSON, nullable=False),  # kind and pool of each step
    # The number of renders of a batch (each counts as a job); null if it is not a batch.
    sa.Column("children", sa.Integer, nullable=True),
    sa.Column("results", sa.JSON, nullable=False),  # of finished steps, ordered by index
    sa.Column("progress", sa.JSON, nullable=False),
    sa.Column("error", sa.JSON, nullable=True),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("webhook", sa.String(2048), nullable=True),
    sa.Column("deadline", sa.DateTime(timezone=True), nullable=True),
    sa.Column("idempotency_key", sa.String(255), nullable=True),
    sa.Column("fingerprint", sa.String(64), nullable=True),
    # The submitter and its rights, with which the steps run.
    sa.Column("key_id", sa.String(64), nullable=True),
    sa.Column("user_id", sa.String(36), nullable=True),
    sa.Column("scopes", sa.String(1024), nullable=False, server_default="*"),
    # Whether the workflow was started; the sweeper starts the others.
    sa.Column("dispatched", sa.Boolean, nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    # When a worker or a renderer first began a step of the current attempt.
    sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
    sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
    # Since when the current attempt is queued; null for jobs of earlier versions.
    sa.Column("queued_at", sa.DateTime(timezone=True), nullable=True),
    # Whether the job was submitted through ComfyUI's API.
    sa.Column("comfyui", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("chosen_id", sa.String(36), nullable=True),  # the prompt's, if a client chose it
    # Who first cancelled the attempt (`moyin.domain.job.Canceller`), which may still succeed.
    sa.Column("cancelled_by", sa.JSON(none_as_null=True), nullable=True),
    # For renders: the name of the ComfyUI client's event stream, the SHA-256 of the blob with
    # ComfyUI's history entry, and whether the owner has removed the render from the history.
    sa.Column("channel", sa.String(64), nullable=True),
    sa.Column("record", sa.String(64), nullable=True),
    sa.Column("hidden", sa.Boolean, nullable=False, server_default=sa.false()),
    # The names of the templates of the steps, for the filter of lists; null if there are none.
    sa.Column("templates", sa.JSON(none_as_null=True), nullable=True),
    # What the ledger's rows of the job's renders cost in all attempts, in billionths of a dollar.
    sa.Column("render_nano_usd", sa.BigInteger, nullable=False, server_default="0"),
    # Whether the current attempt has a row in `render_reservations`.
    sa.Column("reserved", sa.Boolean, nullable=False, server_default=sa.false()),
    # The nodes that ComfyUI's validation found invalid (`moyin.render.protocol.node_errors`).
    sa.Column("node_errors", sa.JSON(none_as_null=True), nullable=True),
    sa.UniqueConstraint("owner", "idempotency_key"),
    sa.Index("ix_jobs_owner_created_at_id", "owner", "created_at", "id"),
    sa.Index("ix_jobs_owner_status_kind", "owner", "status", "kind", "created_at", "id"),
    sa.Index("ix_jobs_channel_finished_at", "channel", "finished_at"),
    sa.Index("ix_jobs_dispatched", "dispatched", "created_at"),
)

# The words of jobs' texts (`moyin.store.job_words`). Migrations add an index of FTS5 (the virtual table
# `job_words`) or GIN (`ix_job_texts_words`).
job_texts = sa.Table(
    "job_texts",
    metadata,
    sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column(
        "job_id", sa.String(36), sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False
    ),
    sa.Column("words", sa.Text, nullable=False),
    sa.UniqueConstraint("job_id"),
)


def is_in_metadata(_item: object, name: str | None, kind: str, *_rest: object) -> bool:
    """Return whether ``metadata`` contains a table or index (Alembic's ``include_object``)."""
    return not (kind in ("table", "index") and "job_words" in (name or "")) and name != (
        "ix_job_texts_words"
    )


# Jobs that their owners deleted. Their ids stay taken, since renderers remember results by id; their
# digests stay until the files are deleted (`moyin.store.deletion_pruning`).
deleted_jobs = sa.Table(
    "deleted_jobs",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("spec", sa.String(64), nullable=False),
    sa.Column("record", sa.String(64), nullable=True),
    sa.Column("results", sa.JSON, nullable=False),
    sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=False),
    # Whether the files were deleted, except those that something else refers to.
    sa.Column("cleaned", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Index("ix_deleted_jobs_cleaned_deleted_at", "cleaned", "deleted_at"),
)

artifacts = sa.Table(
    "artifacts",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("owner", sa.String(128), nullable=False),
    sa.Column("job_id", sa.String(36), nullable=True),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("media_type", sa.String(127), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    # For uploads: the digest by which clients of the Comfy API v2 find an asset.
    sa.Column("blake3", sa.String(64), nullable=True),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    # Since when the artifact is hidden from its owner; jobs that use it may still read it.
    sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
    # Whether a member of the tenant has marked it as one to find again.
    sa.Column("favourite", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Index("ix_artifacts_job_id", "job_id"),
    sa.Index("ix_artifacts_owner_blake3", "owner", "blake3"),
    sa.Index(
        "ix_artifacts_visible",
        "owner",
        "created_at",
        "id",
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    ),
    sa.Index(
        "ix_artifacts_favourites",
        "owner",
        # Constant, but by it SQLite prefers this index to that of all visible artifacts.
        "favourite",
        "created_at",
        "id",
        # As SQLAlchemy writes a condition on a boolean for each database.
        sqlite_where=sa.text("favourite = 1 AND deleted_at IS NULL"),
        postgresql_where=sa.text("favourite AND deleted_at IS NULL"),
    ),
    # Files of jobs by name, as ComfyUI's clients request them.
    sa.Index(
        "ix_artifacts_outputs_by_name",
        "owner",
        "name",
        "created_at",
        "id",
        sqlite_where=sa.text("job_id IS NOT NULL AND deleted_at IS NULL"),
        postgresql_where=sa.text("job_id IS NOT NULL AND deleted_at IS NULL"),
    ),
    # The sizes of a tenant's uploads, which are summed for each further one.
    sa.Index(
        "ix_artifacts_upload_sizes",
        "owner",
        # Both are NULL, but without them SQLite would read the table as well.
        "job_id",
        "deleted_at",
        "size",
        sqlite_where=sa.text("job_id IS NULL AND deleted_at IS NULL"),
        postgresql_where=sa.text("job_id IS NULL AND deleted_at IS NULL"),
    ),
    sa.Index(
        "ix_artifacts_deleted_at",
        "deleted_at",
        sqlite_where=sa.text("deleted_at IS NOT NULL"),
        postgresql_where=sa.text("deleted_at IS NOT NULL"),
    ),
)

# The names of files that ComfyUI's clients uploaded, by which graphs load them.
uploads = sa.Table(
    "uploads",
    metadata,
    sa.Column("owner", sa.String(128), primary_key=True),
    sa.Column("type", sa.String(8), primary_key=True),
    sa.Column("subfolder", sa.String(255), primary_key=True),
    sa.Column("filename", sa.String(255), primary_key=True),
    sa.Column("artifact_id", sa.String(36), nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    sa.Index("ix_uploads_artifact_id", "artifact_id"),
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("owner", sa.String(128), nullable=False),
    sa.Column("name", sa.String(128), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    # The digest of the secret before a rotation, valid until `former_until`.
    sa.Column("former_digest", sa.String(64), nullable=True),
    sa.Column("former_until", sa.DateTime(timezone=True), nullable=True),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
    # The user or service account that owns the key; null if the tenant itself owns it.
    sa.Column("user_id", sa.String(36), sa.ForeignKey("users.id"), nullable=True),
    sa.Column("scopes", sa.String(1024), nullable=False, server_default="*"),
    sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
    sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
    sa.Index("ix_api_keys_owner", "owner"),
)

usage = sa.Table(
    "usage",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    # Not unique, since clients may choose it.
    sa.Column("request_id", sa.String(128), nullable=False),
    sa.Column("owner", sa.String(128), nullable=False),
    sa.Column("backend", sa.String(64), nullable=False),
    sa.Column("model", sa.String(128), nullable=False),
    sa.Column("input_tokens", sa.Integer, nullable=False),
    sa.Column("cached_tokens", sa.Integer, nullable=False),
    sa.Column("output_tokens", sa.Integer, nullable=False),
    # An integer number of billionths, which is exact in every database.
    sa.Column("cost_nano_usd", sa.BigInteger, nullable=False),
    sa.Column("complete", sa.Boolean, nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    # These are null in rows of versions that did not record them.
    sa.Column("key_id", sa.String(64), nullable=True),
    sa.Column("requested_model", sa.String(256), nullable=True),
    sa.Column("error", sa.String(64), nullable=True),
    # These are null for chats and embeddings, which are counted in tokens.
    sa.Column("operation", sa.String(32), nullable=True),
    sa.Column("unit", sa.String(16), nullable=True),
    sa.Column("quantity", sa.BigInteger, nullable=True),
    # For renders: the part of the quantity in which nodes that load model files were executed.
    sa.Column("load_milliseconds", sa.BigInteger, nullable=True),
    # Pages of calls need the first three columns; with the others, sums read no rows of the table,
    # which takes a third of the time.
    sa.Index(
        "ix_usage_sums",
        "owner",
        "created_at",
        "id",
        "complete",
        "unit",
        "model",
        "input_tokens",
        "cached_tokens",
        "output_tokens",
        "quantity",
        "load_milliseconds",
        "cost_nano_usd",
    ),
    sa.Index("ix_usage_created_at_id", "created_at", "id"),
    sa.Index("ix_usage_owner_key_id", "owner", "key_id", "created_at", "id"),
    sa.Index("ix_usage_owner_model", "owner", "model", "created_at", "id"),
    sa.Index("ix_usage_owner_backend", "owner", "backend", "created_at", "id"),
    sa.Index("ix_usage_owner_requested_model", "owner", "requested_model", "created_at", "id"),
    sa.Index(
        "ix_usage_not_complete",
        "owner",
        "created_at",
        "id",
        sqlite_where=sa.text("complete = 0"),
        postgresql_where=sa.text("NOT complete"),
    ),
    sa.Index("ix_usage_request_id", "request_id"),
)

# What budgets in Valkey hold for the renders of jobs; each attempt of a job may have a row.
render_reservations = sa.Table(
    "render_reservations",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("job_id", sa.String(36), nullable=False),
    sa.Column("owner", sa.String(128), nullable=False),
    sa.Column("subjects", sa.JSON, nullable=False),
    sa.Column("day", sa.String(10), nullable=False),
    sa.Column("month", sa.String(7), nullable=False),
    # In billionths of a dollar: the estimate, what budgets count, and what runs have cost.
    sa.Column("reserved_nano", sa.BigInteger, nullable=False),
    sa.Column("counted_nano", sa.BigInteger, nullable=False),
    sa.Column("booked_nano", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("ended", sa.Boolean, nullable=False),
    # When budgets must count another amount; null if they count the right one.
    sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
    # When budgets first counted the cost instead of the estimate.
    sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
    sa.Index("ix_render_reservations_job_id", "job_id", "created_at"),
    sa.Index("ix_render_reservations_due_at", "due_at"),
    sa.Index("ix_render_reservations_settled_at", "settled_at"),
)

organisations = sa.Table(
    "organisations",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("name", sa.String(128), nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    sa.UniqueConstraint("name"),
)

# Players, members of an organisation, and service accounts.
users = sa.Table(
    "users",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("email", sa.String(254), nullable=True),  # lower case; service accounts have none
    sa.Column("name", sa.String(128), nullable=False),
    sa.Column("password", sa.String(256), nullable=True),  # Argon2's own encoding
    sa.Column("organisation_id", sa.String(36), sa.ForeignKey("organisations.id"), nullable=True),
    sa.Column("role", sa.String(16), nullable=True),
    sa.Column("profile", sa.JSON, nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True),
    sa.UniqueConstraint("email"),
    sa.Index("ix_users_organisation_id", "organisation_id"),
)

# Identities at OpenID providers by which users sign in.
sign_ins = sa.Table(
    "sign_ins",
    metadata,
    sa.Column("issuer", sa.String(255), primary_key=True),
    sa.Column("subject", sa.String(255), primary_key=True),
    sa.Column(
        "user_id", sa.String(36), sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False
    ),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
)

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column(
        "user_id", sa.String(36), sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False
    ),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
    # Of the last sign-in or renewal; null once the session has ended.
    sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
    sa.Column("address", sa.String(64), nullable=True),
    sa.Column("user_agent", sa.String(256), nullable=True),
    sa.Index("ix_sessions_user_id", "user_id"),
    sa.Index("ix_sessions_expires_at", "expires_at"),
)

# All refresh tokens of a session, since the second use of one reveals that it was stolen.
refresh_tokens = sa.Table(
    "refresh_tokens",
    metadata,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column(
        "session_id",
        sa.String(36),
        sa.ForeignKey("sessions.id", ondelete="CASCADE"),
        nullable=False,
    ),
    sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
    sa.Index("ix_refresh_tokens_session_id", "session_id"),
)

password_resets = sa.Table(
    "password_resets",
    metadata,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column(
        "user_id", sa.String(36), sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False
    ),
    sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
)

signing_keys = sa.Table(
    "signing_keys",
    metadata,
    sa.Column("kid", sa.String(64), primary_key=True),
    sa.Column("public", sa.String(64), nullable=False),  # raw Ed25519, base64url
    sa.Column("private", sa.String(255), nullable=False),  # encrypted with the stack's secret
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
)

limits = sa.Table(
    "limits",
    metadata,
    sa.Column("subject", sa.String(160), primary_key=True),  # key:…, user:…, owner:…
    sa.Column("requests_per_minute", sa.Integer, nullable=True),
    sa.Column("tokens_per_minute", sa.Integer, nullable=True),
    sa.Column("concurrent_requests", sa.Integer, nullable=True),
    sa.Column("open_jobs", sa.Integer, nullable=True),
    sa.Column("best_priority", sa.Integer, nullable=True),
    sa.Column("graph_nodes", sa.Integer, nullable=True),
    sa.Column("graph_links", sa.Integer, nullable=True),
    sa.Column("graph_bytes", sa.Integer, nullable=True),
    sa.Column("nano_usd_per_day", sa.BigInteger, nullable=True),
    sa.Column("nano_usd_per_month", sa.BigInteger, nullable=True),
    sa.Column("pools", sa.JSON(none_as_null=True), nullable=True),
    sa.Column("allowed_nodes", sa.JSON(none_as_null=True), nullable=True),
    sa.Column("denied_nodes", sa.JSON(none_as_null=True), nullable=True),
)

# Subjects whose limits apply to a key because they apply to the key that created it.
inherited_limits = sa.Table(
    "inherited_limits",
    metadata,
    sa.Column("key_id", sa.String(32), sa.ForeignKey("api_keys.id"), primary_key=True),
    sa.Column("subject", sa.String(160), primary_key=True),
    # Finds the keys that a key has created, directly or through other keys.
    sa.Index("ix_inherited_limits_subject", "subject"),
)

# The audit log of administrative operations. Rows are never updated or deleted.
audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("owner", sa.String(128), nullable=False),  # the tenant whose objects changed
    sa.Column("actor", sa.String(128), nullable=False),
    sa.Column("action", sa.String(64), nullable=False),
    sa.Column("target", sa.String(160), nullable=False),
    sa.Column("details", sa.JSON, nullable=False),
    sa.Column("request_id", sa.String(128), nullable=False),
    sa.Column("address", sa.String(64), nullable=False),
    sa.Index("ix_audit_owner_at", "owner", "at"),
)

# The configurations that the gateway has used, without secrets; see moyin/store/config_history.py.
config_history = sa.Table(
    "config_history",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("settings", sa.JSON, nullable=False),
    sa.Column("applied_at", sa.DateTime(timezone=True), nullable=False),
)

# Files of ComfyUI's frontend.
userdata = sa.Table(
    "userdata",
    metadata,
    sa.Column("owner", sa.String(128), primary_key=True),
    sa.Column("user_id", sa.String(36), primary_key=True),  # empty: the tenant's own keys
    sa.Column("path", sa.String(512), primary_key=True),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("content", sa.LargeBinary, nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("modified_at", sa.DateTime(timezone=True), nullable=False),
)

# The choice of a model for each request, so that the router can learn from later feedback. Contains
# hashes of words (moyin/text/quality/question.py) and no text, and is deleted after thirty days.
quality_decisions = sa.Table(
    "quality_decisions",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("owner", sa.String(128), nullable=False),
    sa.Column("request_id", sa.String(128), nullable=False),
    sa.Column("model", sa.String(128), nullable=False),
    sa.Column("question", sa.JSON, nullable=False),
    sa.Column("p_good", sa.Float, nullable=False),
    # The model, expected cost in nano US dollars, p_good and its lower bound of each candidate.
    sa.Column("options", sa.JSON, nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    sa.Index("ix_quality_decisions_owner_request_id", "owner", "request_id"),
    sa.Index("ix_quality_decisions_created_at", "created_at"),
)

# Signals about the quality of answers, in the order in which replicas learn from them.
quality_signals = sa.Table(
    "quality_signals",
    metadata,
    sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("owner", sa.String(128), nullable=False),
    sa.Column("request_id", sa.String(128), nullable=False),
    sa.Column("key_id", sa.String(64), nullable=False),  # empty: the gateway's own observation
    sa.Column("source", sa.String(16), nullable=False),
    sa.Column("model", sa.String(128), nullable=False),
    sa.Column("question", sa.JSON, nullable=True),  # null: an owner's action, such as a reset
    sa.Column("score", sa.Float, nullable=False),
    sa.Column("weight", sa.Float, nullable=False),
    sa.Column("p_good", sa.Float, nullable=True),  # as estimated before the answer
    sa.Column("comment", sa.String(2000), nullable=True),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    sa.UniqueConstraint("owner", "request_id", "key_id", "source"),
    sa.Index("ix_quality_signals_created_at", "created_at"),
    # Numbers are never reused, since replicas read the rows above their last number.
    sqlite_autoincrement=True,
)

# The state that was learned from a tenant's signals up to `number`.
quality_states = sa.Table(
    "quality_states",
    metadata,
    sa.Column("owner", sa.String(128), primary_key=True),
    sa.Column("state", sa.JSON, nullable=False),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
    # The tenant's contribution to the levels that tenants share, or null.
    sa.Column("levels", sa.JSON(none_as_null=True)),
    sa.Index("ix_quality_states_updated_at", "updated_at"),
)

# Answers of the Responses API, which later requests continue. Deleted after thirty days.
responses = sa.Table(
    "responses",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("owner", sa.String(128), nullable=False),
    sa.Column("previous", sa.String(64), nullable=True),
    # JSON: the request's own items, the response object, and proofs of reasoning by item id.
    sa.Column("input", sa.LargeBinary, nullable=False),
    sa.Column("response", sa.LargeBinary, nullable=False),
    sa.Column("proofs", sa.LargeBinary, nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    sa.Index("ix_responses_owner_created_at", "owner", "created_at"),
    sa.Index("ix_responses_created_at", "created_at"),
)

# Files of tenants, such as the inputs and results of batches.
files = sa.Table(
    "files",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("owner", sa.String(128), nullable=False),
    sa.Column("purpose", sa.String(32), nullable=False),
    sa.Column("filename", sa.String(255), nullable=False),
    sa.Column("media_type", sa.String(127), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
    # Since when the file is hidden; a batch may still read it.
    sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
    sa.Index("ix_files_owner_created_at_id", "owner", "created_at", "id"),
    sa.Index("ix_files_sha256", "sha256"),
)

# Batches of text requests. Rows are authoritative; a workflow only triggers their steps.
text_batches = sa.Table(
    "text_batches",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("owner", sa.String(128), nullable=False),
    sa.Column("dialect", sa.String(16), nullable=False),
    sa.Column("endpoint", sa.String(64), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("input_file_id", sa.String(64), nullable=False),
    sa.Column("output_file_id", sa.String(64), nullable=True),
    sa.Column("error_file_id", sa.String(64), nullable=True),
    sa.Column("errors", sa.JSON, nullable=False),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("total", sa.Integer, nullable=False),
    sa.Column("completed", sa.Integer, nullable=False),
    sa.Column("failed", sa.Integer, nullable=False),
    # The submitter and its rights, with which the lines run.
    sa.Column("key_id", sa.String(64), nullable=False),
    sa.Column("user_id", sa.String(36), nullable=True),
    sa.Column("scopes", sa.String(1024), nullable=False),
    # Whether the workflow was started; the sweeper starts the others.
    sa.Column("dispatched", sa.Boolean, nullable=False),
    sa.Column("output_expires_after", sa.Integer, nullable=True),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("in_progress_at", sa.DateTime(timezone=True), nullable=True),
    sa.Column("cancelling_at", sa.DateTime(timezone=True), nullable=True),
    sa.Column("finalizing_at", sa.DateTime(timezone=True), nullable=True),
    sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
    sa.Index("ix_text_batches_owner_created_at_id", "owner", "created_at", "id"),
    sa.Index("ix_text_batches_dispatched", "dispatched", "created_at"),
)

# The lines of open batches; they are deleted when their results are in files.
text_batch_lines = sa.Table(
    "text_batch_lines",
    metadata,
    sa.Column("batch_id", sa.String(64), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("custom_id", sa.String(256), nullable=False),
    # Where the line is in the input file, in bytes.
    sa.Column("start", sa.BigInteger, nullable=False),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    # The runner of the line. While it is alive, no other runner may claim the line.
    sa.Column("runner", sa.String(64), nullable=True),
    sa.Column("http_status", sa.Integer, nullable=True),
    sa.Column("error_code", sa.String(64), nullable=True),
    sa.Column("body", sa.LargeBinary, nullable=True),
    sa.Index(
        "ix_text_batch_lines_pending",
        "batch_id",
        "number",
        sqlite_where=sa.text("status = 'pending'"),
        postgresql_where=sa.text("status = 'pending'"),
    ),
)

# The processes that run lines, and until when they count as alive.
text_batch_runners = sa.Table(
    "text_batch_runners",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("alive_until", sa.DateTime(timezone=True), nullable=False),
)

# Batches at a back end's own batch API. Each is the runner of its lines, under its own id.
native_batches = sa.Table(
    "native_batches",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("batch_id", sa.String(64), nullable=False),
    sa.Column("backend", sa.String(64), nullable=False),
    sa.Column("model", sa.String(128), nullable=False),
    sa.Column("remote_id", sa.String(128), nullable=True),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("state", sa.JSON, nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
    sa.Index("ix_native_batches_batch_id", "batch_id"),
)
