"""S3 through fsspec: how it is asked, and what its failures mean.

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

__all__ = ["S3_PREFIX", "ask", "open_bucket", "patience"]

S3_PREFIX = "s3://"

_log = logging.getLogger(__name__)
_OPTIONS = {
    # Each store has connections of its own, which end with it.
    "skip_instance_cache": True,
    # Another process may write at any time what was not there a moment ago.
    "use_listings_cache": False,
    # `get` is one request, and of a large file one part is in memory at a time.
    "max_concurrency": 1,
    "config_kwargs": {
        # A server that takes the connection and never answers is given up after half a minute.
        "read_timeout": 10,
        "retries": {"mode": "standard", "total_max_attempts": 3},
        # botocore's 10 are fewer than the downloads that one gateway replica may serve.
        "max_pool_connections": 64,
    },
}


def open_bucket(url: str) -> tuple[Any, str]:
    """The file system of ``s3://bucket/prefix`` and the path in it; nothing is asked yet.

    Raises:
        ImportError: the extra ``s3`` is not installed.
    """
    files, root = fsspec.core.url_to_fs(url, **_OPTIONS)
    # s3fs would try each of botocore's failures five times more, `get` 25 times.
    files.retries = 1
    return files, root


def patience(size: int) -> float:
    """Seconds for sending ``size`` bytes, at a megabyte per second and more.

    A server that has no word for a request with a body is waited for without `read_timeout`:
    botocore asks first whether it may send (``Expect``), and aiohttp waits for that for ever.
    """
    return 30 + size / 1_000_000


async def ask(
    files: Any, method: str, *args: Any, seconds: float | None = None, **kwargs: Any
) -> Any:
    """What ``method`` of the file system returns.

    It runs in the event loop that fsspec keeps in a thread of its own: no thread waits for it, and
    whoever is cancelled cancels it.

    Raises:
        FileNotFoundError: no such object.
        ServiceUnavailable: S3 is away or took longer than ``seconds``, the bucket is not there, or
            our credentials are refused.
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
    """s3fs has one exception for a missing object and a missing bucket, and botocore's inside."""
    answer = getattr(error.__cause__, "response", {})
    return bool(answer.get("Error", {}).get("Code") == "NoSuchBucket")


def _unavailable(error: Exception) -> ServiceUnavailable:
    _log.warning("S3: %s: %s", type(error).__name__, error)
    return ServiceUnavailable("the artifact store is not available", retry_after=5)
