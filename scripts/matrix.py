"""Writes docs/reference/matrix.md: which client can ask what of which back end.

Run it with `make docs`. A test fails when the page is not what the gateway does.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from tests.integration.matrix import PAGE, page, run


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        PAGE.write_text(page(asyncio.run(run(Path(folder)))))


if __name__ == "__main__":
    main()
