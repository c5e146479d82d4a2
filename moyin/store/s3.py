"""Calls S3 through fsspec, and translates its errors to those of Moyin.

Botocore reads the endpoint, region and credentials from AWS's own environment variables, files and
instance profiles. The library s3fs, from the extra ``s3``, is imported only if S3 is used.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import aiohttp
import fsspec

from moyin.errors import ServiceUnavailable

S3_PREFIX = "s3://"

_log = logging.getLogger(__name__)
_OPTIONS = {
    # Each store has its own connections, which end with the store.
    "skip_instance_cache": True,
    # Another process may create an object at any time.
    "use_listings_cache": False,
    # Only one part of a large file is in memory at a time.
    "max_concurrency": 1,
    "config_kwargs": {
        # With three attempts, a server that never responds fails after half a minute.
        "read_timeout": 10,
        "retries": {"mode": "standard", "total_max_attempts": 3},
        # botocore's default of 10 is less than the concurrent downloads of a gateway replica.
        "max_pool_connections": 64,
    },
}


def open_bucket(url: str) -> tuple[Any, str]:
    """Return the file system and path of ``s3://bucket/prefix``; needs the extra ``s3``."""
    file_system, root = fsspec.core.url_to_fs(url, **_OPTIONS)
    # s3fs would retry each of botocore's failures five times, for `get` 25 times.
    file_system.retries = 1
    return file_system, root


def compute_upload_timeout(size: int) -> float:
    """Return the seconds that an upload of ``size`` bytes may take: 30, and one per megabyte.

    Botocore's `read_timeout` does not cover uploads: it sends ``Expect: 100-continue``, and aiohttp
    waits for the server's response to that without a timeout.
    """
    return 30 + size / 1_000_000


async def call_method(
    file_system: Any, method: str, *args: Any, timeout_seconds: float | None = None, **kwargs: Any
) -> Any:
    """Call a method of a file system and return its result.

    The call runs in the event loop of fsspec's thread, so that it blocks no other thread.
    Cancelling this coroutine cancels the call.

    Raises:
        FileNotFoundError: the object does not exist.
        ServiceUnavailable: S3 is unavailable or took longer than ``timeout_seconds``, the bucket does not
            exist, or S3 refused the credentials.
    """
    from botocore.exceptions import BotoCoreError
    from botocore.parsers import ResponseParserError

    coroutine = getattr(file_system, f"_{method}")(*args, **kwargs)
    try:
        async with asyncio.timeout(timeout_seconds):
            return await asyncio.wrap_future(
                asyncio.run_coroutine_threadsafe(coroutine, file_system.loop)
            )
    except FileNotFoundError as error:
        if not _is_bucket_missing(error):
            raise
        raise _new_unavailable_error(error) from error
    except (OSError, BotoCoreError, ResponseParserError, aiohttp.ClientError) as error:
        raise _new_unavailable_error(error) from error


def _is_bucket_missing(error: FileNotFoundError) -> bool:
    """Return whether botocore's error says that the bucket, not the object, does not exist."""
    response = getattr(error.__cause__, "response", {})
    return bool(response.get("Error", {}).get("Code") == "NoSuchBucket")


def _new_unavailable_error(error: Exception) -> ServiceUnavailable:
    _log.warning("a request to S3 failed: %s: %s", type(error).__name__, error)
    return ServiceUnavailable(
        "the artifact store in S3 is unavailable; try again in 5 seconds", retry_after=5
    )
