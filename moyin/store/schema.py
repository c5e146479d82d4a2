"""SQL tables. Alembic migrations in ``migrations/`` make exactly these; a test compares them."""

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

# A projection that the workflow writes; Temporal is the truth about what runs.
jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("owner", sa.String(128), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("spec", sa.String(64), nullable=False),
    sa.Column("heads", sa.JSON, nullable=False),  # per step: kind and pool
    # Of a batch: so many renders run side by side, and count as so many jobs.
    sa.Column("children", sa.Integer, nullable=True),
    sa.Column("results", sa.JSON, nullable=False),  # finished steps, by index
    sa.Column("progress", sa.JSON, nullable=False),
    sa.Column("error", sa.JSON, nullable=True),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("webhook", sa.String(2048), nullable=True),
    sa.Column("deadline", sa.DateTime(timezone=True), nullable=True),
    sa.Column("idempotency_key", sa.String(255), nullable=True),
    sa.Column("fingerprint", sa.String(64), nullable=True),
    # Who submitted it, and with which rights: its steps may do no more.
    sa.Column("key_id", sa.String(64), nullable=True),
    sa.Column("user_id", sa.String(36), nullable=True),
    sa.Column("scopes", sa.String(1024), nullable=False, server_default="*"),
    # False between the row and the workflow's start: what the sweeper looks for.
    sa.Column("dispatched", sa.Boolean, nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
    sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
    # When a renderer first took it up.
    sa.Column("begun_at", sa.DateTime(timezone=True), nullable=True),
    # Whether it is a prompt of ComfyUI's own API.
    sa.Column("comfyui", sa.Boolean, nullable=False, server_default=sa.false()),
    # Who asked for its end first (`moyin.domain.job.Canceller`); the attempt may still end otherwise.
    sa.Column("cancelled_by", sa.JSON(none_as_null=True), nullable=True),
    # Of renders: the ComfyUI client that wants the events, what ComfyUI's history says of it (a
    # blob), and whether the owner has taken it out of that history.
    sa.Column("channel", sa.String(64), nullable=True),
    sa.Column("record", sa.String(64), nullable=True),
    sa.Column("hidden", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.UniqueConstraint("owner", "idempotency_key"),
    sa.Index("ix_jobs_owner_created_at_id", "owner", "created_at", "id"),
    sa.Index("ix_jobs_owner_status", "owner", "status"),
    sa.Index("ix_jobs_channel_finished_at", "channel", "finished_at"),
    sa.Index("ix_jobs_dispatched", "dispatched", "created_at"),
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
    # Of uploads: what clients of the Comfy API v2 look them up by.
    sa.Column("blake3", sa.String(64), nullable=True),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    # Gone for its owner; jobs that were accepted with it may still read it.
    sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
    sa.Index("ix_artifacts_job_id", "job_id"),
    sa.Index("ix_artifacts_owner_blake3", "owner", "blake3"),
)

# Files that ComfyUI's clients uploaded, by the names under which their graphs load them.
uploads = sa.Table(
    "uploads",
    metadata,
    sa.Column("owner", sa.String(128), primary_key=True),
    sa.Column("type", sa.String(8), primary_key=True),
    sa.Column("subfolder", sa.String(255), primary_key=True),
    sa.Column("filename", sa.String(255), primary_key=True),
    sa.Column("artifact_id", sa.String(36), nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("owner", sa.String(128), nullable=False),
    sa.Column("name", sa.String(128), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    # After a rotation the secret before is good for a while.
    sa.Column("former_digest", sa.String(64), nullable=True),
    sa.Column("former_until", sa.DateTime(timezone=True), nullable=True),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
    # The person or service account that it belongs to; null: the tenant's own key.
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
    # Clients may choose it, so it need not be unique.
    sa.Column("request_id", sa.String(128), nullable=False),
    sa.Column("owner", sa.String(128), nullable=False),
    sa.Column("backend", sa.String(64), nullable=False),
    sa.Column("model", sa.String(128), nullable=False),
    sa.Column("input_tokens", sa.Integer, nullable=False),
    sa.Column("cached_tokens", sa.Integer, nullable=False),
    sa.Column("output_tokens", sa.Integer, nullable=False),
    # Whole billionths of a dollar: exact on every database.
    sa.Column("cost_nano_usd", sa.BigInteger, nullable=False),
    sa.Column("complete", sa.Boolean, nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    sa.Index("ix_usage_owner_created_at", "owner", "created_at"),
    sa.Index("ix_usage_request_id", "request_id"),
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

# Who an OpenID provider says somebody is.
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
    sa.Index("ix_sessions_user_id", "user_id"),
    sa.Index("ix_sessions_expires_at", "expires_at"),
)

# All that a session ever had: presenting one that was used before betrays a thief.
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
    sa.Column("nano_usd_per_day", sa.BigInteger, nullable=True),
    sa.Column("nano_usd_per_month", sa.BigInteger, nullable=True),
    sa.Column("pools", sa.JSON(none_as_null=True), nullable=True),
    sa.Column("allowed_nodes", sa.JSON(none_as_null=True), nullable=True),
    sa.Column("denied_nodes", sa.JSON(none_as_null=True), nullable=True),
)

# Administrative acts. Nobody updates or deletes these rows.
audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("owner", sa.String(128), nullable=False),  # the tenant that it concerns
    sa.Column("actor", sa.String(128), nullable=False),
    sa.Column("action", sa.String(64), nullable=False),
    sa.Column("target", sa.String(160), nullable=False),
    sa.Column("details", sa.JSON, nullable=False),
    sa.Column("request_id", sa.String(128), nullable=False),
    sa.Column("address", sa.String(64), nullable=False),
    sa.Index("ix_audit_owner_at", "owner", "at"),
)

# Files of ComfyUI's frontend.
userdata = sa.Table(
    "userdata",
    metadata,
    sa.Column("owner", sa.String(128), primary_key=True),
    sa.Column("user_id", sa.String(36), primary_key=True),  # empty: those of the tenant's own keys
    sa.Column("path", sa.String(512), primary_key=True),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("content", sa.LargeBinary, nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("modified_at", sa.DateTime(timezone=True), nullable=False),
)

# What the router knew of a request when it chose a model, so that feedback can come later. No text:
# words are hashed numbers (moyin/text/quality/question.py). Deleted after thirty days.
quality_decisions = sa.Table(
    "quality_decisions",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("owner", sa.String(128), nullable=False),
    sa.Column("request_id", sa.String(128), nullable=False),
    sa.Column("model", sa.String(128), nullable=False),
    sa.Column("question", sa.JSON, nullable=False),
    sa.Column("p_good", sa.Float, nullable=False),
    # Per candidate: model, expected cost in nano US dollars, expectation, careful bound.
    sa.Column("options", sa.JSON, nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    sa.Index("ix_quality_decisions_owner_request_id", "owner", "request_id"),
    sa.Index("ix_quality_decisions_created_at", "created_at"),
)

# Signals in the order in which every replica learns from them, and what an owner did about learning.
quality_signals = sa.Table(
    "quality_signals",
    metadata,
    sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("owner", sa.String(128), nullable=False),
    sa.Column("request_id", sa.String(128), nullable=False),
    sa.Column("key_id", sa.String(64), nullable=False),  # empty: the gateway's own observation
    sa.Column("source", sa.String(16), nullable=False),
    sa.Column("model", sa.String(128), nullable=False),
    sa.Column("question", sa.JSON, nullable=True),  # null: an owner's act, such as a reset
    sa.Column("score", sa.Float, nullable=False),
    sa.Column("weight", sa.Float, nullable=False),
    sa.Column("p_good", sa.Float, nullable=True),  # expected before the answer, for calibration
    sa.Column("comment", sa.String(2000), nullable=True),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    sa.UniqueConstraint("owner", "request_id", "key_id", "source"),
    sa.Index("ix_quality_signals_created_at", "created_at"),
    # A number that was deleted is never given again: replicas ask for what is above their last.
    sqlite_autoincrement=True,
)

# Per tenant, what the signals up to a number taught.
quality_states = sa.Table(
    "quality_states",
    metadata,
    sa.Column("owner", sa.String(128), primary_key=True),
    sa.Column("state", sa.JSON, nullable=False),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
    # What the tenant contributes to the levels that all share; null: nothing.
    sa.Column("levels", sa.JSON(none_as_null=True)),
    sa.Index("ix_quality_states_updated_at", "updated_at"),
)
