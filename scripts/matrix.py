"""Writes docs/reference/matrix.md: which features each pair of client and back end supports.

Run it with `make docs`. A test fails if the page does not match the gateway's behaviour.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from tests.integration.text.matrix import PAGE, build_page, run_matrix


def main() -> None:
    """Write docs/reference/matrix.md."""
    with tempfile.TemporaryDirectory() as folder:
        PAGE.write_text(build_page(asyncio.run(run_matrix(Path(folder)))))


if __name__ == "__main__":
    main()
