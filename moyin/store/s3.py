"""Calls S3 through fsspec and translates its errors.

Endpoint, region and credentials are read by botocore from AWS's own environment variables, files
and instance profiles. The library (s3fs, of the extra ``s3``) is imported with the first URL that
names a bucket.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import aiohttp
import fsspec

from moyin.errors import ServiceUnavailable

__all__ = ["S3_PREFIX", "call", "open_bucket", "upload_timeout"]

S3_PREFIX = "s3://"

_log = logging.getLogger(__name__)
_OPTIONS = {
    # Each store has its own connections, which are closed with it.
    "skip_instance_cache": True,
    # Another process may create an object at any time.
    "use_listings_cache": False,
    # `get` is one request, and only one part of a large file is in memory at a time.
    "max_concurrency": 1,
    "config_kwargs": {
        # A server that accepts the connection and never responds fails after half a minute.
        "read_timeout": 10,
        "retries": {"mode": "standard", "total_max_attempts": 3},
        # botocore's default of 10 is less than the downloads that a gateway replica may serve.
        "max_pool_connections": 64,
    },
}


def open_bucket(url: str) -> tuple[Any, str]:
    """Return the file system of ``s3://bucket/prefix`` and the path in it, without a request.

    Raises:
        ImportError: the extra ``s3`` is not installed.
    """
    files, root = fsspec.core.url_to_fs(url, **_OPTIONS)
    # s3fs would retry each of botocore's failures five times, for `get` 25 times.
    files.retries = 1
    return files, root


def upload_timeout(size: int) -> float:
    """Return the seconds that sending ``size`` bytes may take: 30, and one per megabyte.

    `read_timeout` does not cover a request with a body: botocore sends ``Expect: 100-continue``,
    and aiohttp waits for the server's reply without a timeout.
    """
    return 30 + size / 1_000_000


async def call(
    files: Any, method: str, *args: Any, seconds: float | None = None, **kwargs: Any
) -> Any:
    """Call a method of the file system and return its result.

    It runs in the event loop of fsspec's thread, so no thread waits for it. Cancelling the caller
    cancels it.

    Raises:
        FileNotFoundError: the object does not exist.
        ServiceUnavailable: S3 is unavailable or took longer than ``seconds``, the bucket does not
            exist, or the credentials are refused.
    """
    from botocore.exceptions import BotoCoreError
    from botocore.parsers import ResponseParserError

    work = getattr(files, f"_{method}")(*args, **kwargs)
    try:
        async with asyncio.timeout(seconds):
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, files.loop))
    except FileNotFoundError as error:
        if not _bucket_is_missing(error):
            raise
        raise _unavailable(error) from error
    except (OSError, BotoCoreError, ResponseParserError, aiohttp.ClientError) as error:
        raise _unavailable(error) from error


def _bucket_is_missing(error: FileNotFoundError) -> bool:
    """Distinguish a missing bucket from a missing object by the error of botocore inside."""
    response = getattr(error.__cause__, "response", {})
    return bool(response.get("Error", {}).get("Code") == "NoSuchBucket")


def _unavailable(error: Exception) -> ServiceUnavailable:
    _log.warning("S3: %s: %s", type(error).__name__, error)
    return ServiceUnavailable("the artifact store is unavailable; try again", retry_after=5)
