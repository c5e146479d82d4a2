"""Runs the supervisor in a process of its own (``python -m moyin.stack.daemon``)."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

from moyin.errors import StackError
from moyin.stack.options import Options
from moyin.stack.supervisor import Supervisor

__all__ = ["main", "serve"]


def serve(options: Options) -> None:
    """Run the supervisor in this process until SIGTERM or SIGINT.

    Raises:
        StackError: The stack cannot start.
    """
    os.umask(0o077)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    asyncio.run(Supervisor(options).run())


def main() -> int:
    """Run the supervisor and return the exit status of this process."""
    try:
        serve(Options.read())
    except StackError as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
