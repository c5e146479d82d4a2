"""Parses the forms and renders the responses of OpenAI's ``/v1/files``.

Source: OpenAI's API reference as typed in ``openai.types.file_object`` and
``openai.types.file_create_params``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from moyin.domain.stored_file import StoredFile
from moyin.errors import InvalidRequest, UnsupportedFeature

# Purposes of files that clients upload, and of files that batches create.
UPLOAD_PURPOSES = ("assistants", "batch", "user_data", "vision")
_PURPOSES = ", ".join(UPLOAD_PURPOSES)
_UNSUPPORTED_PURPOSES = ("evals", "fine-tune")
_MIN_SECONDS = 3_600
_MAX_SECONDS = 30 * 86_400
_ANCHOR = "created_at"
# Default lifetime of the input files of batches.
_BATCH_LIFETIME = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class UploadFields:
    """The text fields of an upload; the file never expires if ``lifetime`` is None."""

    purpose: str
    lifetime: timedelta | None


def parse_upload_fields(fields: Mapping[str, str]) -> UploadFields:
    """Parse the text fields of an upload's form.

    Raises:
        InvalidRequest: a field is missing or invalid; the error names it.
        UnsupportedFeature: Moyin does not support the value of the field ``purpose``.
    """
    purpose = fields.get("purpose")
    if purpose in _UNSUPPORTED_PURPOSES:
        raise UnsupportedFeature(
            f"purpose: {purpose} is not supported; must be one of {_PURPOSES}", field="purpose"
        )
    if purpose not in UPLOAD_PURPOSES:
        raise InvalidRequest(f"purpose must be one of {_PURPOSES}", field="purpose")
    lifetime = _parse_lifetime(fields)
    if lifetime is None and purpose == "batch":
        lifetime = _BATCH_LIFETIME
    return UploadFields(purpose, lifetime)


def render_file(file: StoredFile) -> dict[str, Any]:
    """Return the file object that clients receive."""
    expires_at = file.expires_at
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size,
        "created_at": int(file.created_at.timestamp()),
        "expires_at": None if expires_at is None else int(expires_at.timestamp()),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def render_file_list(files: Sequence[StoredFile], *, has_more: bool) -> dict[str, Any]:
    """Return one page of a list of files, as clients receive it.

    Args:
        files: the files of the page.
        has_more: True if another page follows.
    """
    return {
        "object": "list",
        "data": [render_file(file) for file in files],
        "first_id": files[0].id if files else None,
        "last_id": files[-1].id if files else None,
        "has_more": has_more,
    }


def _parse_lifetime(fields: Mapping[str, str]) -> timedelta | None:
    anchor, seconds = (fields.get(f"expires_after[{name}]") for name in ("anchor", "seconds"))
    if anchor is None and seconds is None:
        return None
    if anchor != _ANCHOR:
        raise InvalidRequest(
            f"expires_after[anchor] must be {_ANCHOR}", field="expires_after[anchor]"
        )
    is_number = seconds is not None and seconds.isascii() and seconds.isdecimal()
    if not is_number or not _MIN_SECONDS <= int(seconds or "") <= _MAX_SECONDS:
        raise InvalidRequest(
            f"expires_after[seconds] must be a whole number from {_MIN_SECONDS} to {_MAX_SECONDS}",
            field="expires_after[seconds]",
        )
    return timedelta(seconds=int(seconds or ""))
