"""Defines files that clients of text models store, such as the inputs and results of batches."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime

# The purposes of files that a batch writes. Clients cannot upload such files.
BATCH_INPUT = "batch"
BATCH_OUTPUT = "batch_output"
# Files that Moyin itself needs, such as the requests of a batch that came without a file. They are
# in no list, and clients cannot read them.
INTERNAL = "internal"


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFile:
    """A file of a tenant; its content is a blob.

    Attributes:
        id: ``file-`` and 32 hexadecimal digits.
        purpose: the client's purpose of the file, such as ``batch`` or ``user_data``.
        size: the size in bytes.
        sha256: the digest that names the blob.
        expires_at: the time at which the file is deleted; None means never.
    """

    id: str
    owner: str
    purpose: str
    filename: str
    media_type: str
    size: int
    sha256: str
    created_at: datetime
    expires_at: datetime | None = None


def new_file_id() -> str:
    """Return the id of a new file."""
    return f"file-{secrets.token_hex(16)}"
