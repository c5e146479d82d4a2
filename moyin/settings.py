"""Defines `Settings`, the configuration that every process reads from ``MOYIN_`` variables.

``docs/reference/settings.md`` is generated from the descriptions here. The defaults are those of
the embedded stack of ``moyin up``.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from moyin.domain.graph_bounds import DEFAULT_BYTES, DEFAULT_LINKS, DEFAULT_NODES, GraphBounds
from moyin.errors import StackError


class Settings(BaseSettings):
    """The addresses, folders and limits of a Moyin process, which never change while it runs."""

    model_config = SettingsConfigDict(env_prefix="MOYIN_", frozen=True, extra="ignore")

    data: Path = Field(Path(".moyin"), description="Data folder: everything that Moyin stores.")
    door: str = Field(
        "http://127.0.0.1:8000",
        description="Address of the gateway for services inside the cluster.",
    )
    database_url: str = Field(
        "",
        description="SQLAlchemy URL (async driver); empty: SQLite in the data folder.",
        repr=False,
    )
    grpc_host: str = Field(
        "127.0.0.1",
        description="Address on which replicas listen for gRPC; HAProxy must be able to reach it.",
    )
    replica_memory_mib: int = Field(
        2048,
        ge=0,
        description="Memory limit of a gateway, models or accounts replica, in MiB: one that "
        "exceeds it is replaced. 0: no limit.",
    )
    memory_reserve_mib: int = Field(
        512,
        ge=0,
        description="While less memory than this is available on a node, in MiB, Moyin ends its "
        "largest ComfyUI process there, then its llama.cpp servers, and starts them again when there is "
        "enough. 0: leave it to the kernel.",
    )
    redis_url: str = Field(
        "redis://127.0.0.1:6380/0",
        description="Valkey or Redis, `redis://:password@host:port/0`. `moyin up` passes the apps the "
        "address of its own server, whose password is in `valkey-password` in the data folder.",
        repr=False,
    )
    temporal_address: str = Field("127.0.0.1:7233", description="host:port of Temporal.")
    temporal_namespace: str = Field("moyin", description="Temporal namespace of the jobs.")
    temporal_ui_url: str = Field(
        "",
        description="Address of Temporal's web interface, to which the console links for operators. "
        "`moyin up` sets that of its own, on loopback; empty: no link.",
    )
    ray_dashboard_url: str = Field(
        "",
        description="Address of Ray's dashboard, to which the console links for operators. "
        "`moyin up` sets that of its own, on loopback; empty: no link.",
    )
    artifacts_url: str = Field(
        "",
        description="Artifact store: `file:///folder` or `s3://bucket/prefix` (extra `s3`); empty: "
        "a folder in the data folder. The bucket must exist. Keys and endpoint come from AWS's "
        "own environment or instance profile: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, "
        "`AWS_DEFAULT_REGION`, and for MinIO, Ceph or Cloudflare R2 `AWS_ENDPOINT_URL_S3`. They "
        "must allow `s3:GetObject`, `s3:PutObject`, `s3:AbortMultipartUpload` and `s3:ListBucket`, and "
        "`s3:DeleteObject` where old jobs are deleted. Give the bucket a lifecycle rule with "
        "`AbortIncompleteMultipartUpload`: an interrupted upload leaves its parts behind.",
    )
    secret: str = Field(
        "",
        description="Key that signs internal tokens and webhooks; empty: a file in the data folder.",
        repr=False,
    )
    max_body_bytes: int = Field(
        64 * 1024 * 1024, ge=1024, description="Largest request body, in bytes."
    )
    max_upload_mib: int = Field(
        100 * 1024,
        ge=1,
        description="Most MiB of a tenant's uploads together, and of its files of `/v1/files` together.",
    )
    max_requests_in_progress: int = Field(
        1_024,
        ge=1,
        description="Most requests, and most WebSockets, that a tenant may have in a replica at a time.",
    )
    max_graph_nodes: int = Field(
        DEFAULT_NODES,
        ge=1,
        description="Most nodes of the graphs of a job; `graph_nodes` of a tenant's limits replaces it.",
    )
    max_graph_links: int = Field(
        DEFAULT_LINKS,
        ge=1,
        description="Most links of the graphs of a job; `graph_links` of a tenant's limits replaces it.",
    )
    max_graph_bytes: int = Field(
        DEFAULT_BYTES,
        ge=1024,
        description="Largest graphs of a job, in bytes of their JSON, and largest body of `POST /prompt`, "
        "`/api/v2/jobs` and `/graphs/convert`; `graph_bytes` of a tenant's limits replaces it.",
    )
    max_file_bytes: int = Field(
        512 * 1024 * 1024,
        ge=1024,
        description="Largest file of `POST /v1/files`, and largest body of "
        "`POST /v1/messages/batches`, in bytes.",
    )
    webhook_networks: str = Field(
        "",
        description="Comma-separated CIDR blocks of private networks that webhooks may reach.",
    )
    picture_networks: str = Field(
        "",
        description="Comma-separated CIDR blocks of private networks from which pictures that a "
        "prompt names by URL may be fetched.",
    )
    trusted_proxies: str = Field(
        "",
        description="Comma-separated CIDR blocks of proxies in front of the gateway whose "
        "`X-Forwarded-For` is trusted.",
    )
    cors_origins: str = Field(
        "",
        description="Comma-separated origins whose pages may call the gateway; `*`: any; empty: none.",
    )
    rates_fail_open: bool = Field(
        True,
        description="When Valkey is unavailable, allow requests that are subject to rate limits.",
    )
    budgets_fail_open: bool = Field(
        False, description="When Valkey is unavailable, allow requests that are subject to budgets."
    )
    smtp_url: str = Field(
        "",
        description="Mail server, `smtp://user:password@host:587` or `smtps://…`; empty: no mail.",
        repr=False,
    )
    mail_from: str = Field("moyin@localhost", description="Sender of mails.")
    job_history_days: int = Field(
        30, ge=1, description="Days for which Temporal keeps finished jobs, and Moyin their events."
    )
    keep_jobs_days: int = Field(
        0,
        ge=0,
        le=36_500,
        description="Days after which finished jobs are deleted, with the pictures that they "
        "made; 0: never. `moyin prune` deletes them by hand.",
    )
    anthropic_api_key: str = Field(
        "", description="Key for Claude; back ends may name another variable.", repr=False
    )
    public_url: str = Field(
        "",
        description="Address of the gateway for clients, used in links to pictures; empty: the host "
        "that the request names.",
    )
    templates: Path | None = Field(
        None, description="Folder of template files; empty: `templates` in the data folder."
    )
    shipped_templates: bool = Field(
        True, description="Offer the templates that come with Moyin beside your own."
    )
    comfyui_home: Path | None = Field(
        None, description="Folder of your own ComfyUI; empty: the one `moyin comfyui install` made."
    )
    comfyui_python: Path | None = Field(None, description="Python that runs your own ComfyUI.")
    comfyui_uid: int | None = Field(
        None,
        ge=1,
        description="User id of confined ComfyUIs where the stack runs as root; empty: each has one "
        "of its own, from 1900000000 on.",
    )
    comfyui_frontend: Path | None = Field(
        None,
        description="Folder with the index.html of another version of ComfyUI's frontend; empty: "
        "the one in ComfyUI's environment.",
    )
    log_level: str = Field("INFO", description="Level of Moyin's own logs.")

    @field_validator("data")
    @classmethod
    def _make_absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("temporal_ui_url", "ray_dashboard_url")
    @classmethod
    def _require_web_address(cls, value: str) -> str:
        """Accept only web addresses, because the console shows them to operators as links."""
        url_parts = urlsplit(value)
        if value and (url_parts.scheme not in ("http", "https") or not url_parts.hostname):
            raise ValueError("must be an http or https URL, such as http://127.0.0.1:8233")
        if url_parts.username or url_parts.password or url_parts.query or url_parts.fragment:
            raise ValueError("must not contain a user, password, query or fragment")
        return value.rstrip("/")

    @property
    def sql_url(self) -> str:
        # These two characters of a path have a special meaning in SQLAlchemy's URLs.
        path = str(self.data / "moyin.db").replace("%", "%25").replace("?", "%3F")
        return self.database_url or f"sqlite:///{path}"

    @property
    def blobs_url(self) -> str:
        return self.artifacts_url or f"file://{self.data / 'artifacts'}"

    @property
    def graph_bounds(self) -> GraphBounds:
        """The largest graphs of tenants without limits of their own."""
        return GraphBounds(
            nodes=self.max_graph_nodes, links=self.max_graph_links, bytes=self.max_graph_bytes
        )

    def signing_key(self) -> bytes:
        """Return the key that signs internal tokens and webhooks; create its file on first use.

        Raises:
            StackError: the file is empty, and with an empty key anyone could forge signatures.
        """
        if self.secret:
            return self.secret.encode()
        path = self.data / "secret"
        try:
            key = path.read_bytes()
        except FileNotFoundError:
            return _create_secret(path)
        if is_blank(key):
            raise StackError(f"{path} is empty: `moyin doctor --fix` makes a new key")
        return key


def is_blank(secret: bytes) -> bool:
    """Return True if a secret is empty or only NUL and spaces, as after a power failure."""
    return not secret.strip(b"\0 \t\r\n")


def _create_secret(path: Path) -> bytes:
    """Create the secret's file, with mode 0600, and return the secret.

    If several processes create the file at the same time, all of them return the same secret.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary_path = path.with_name(f".secret.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary_path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_hex(32).encode())
    try:
        os.link(temporary_path, path)
    except FileExistsError:
        pass
    finally:
        temporary_path.unlink()
    return path.read_bytes()
