"""Runs the supervisor in a process of its own (``python -m moyin.stack.daemon``)."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

from moyin.errors import StackError
from moyin.stack.options import Options
from moyin.stack.supervisor import Supervisor

__all__ = ["main", "run_supervisor"]


def run_supervisor(options: Options) -> None:
    """Run the supervisor until SIGTERM or SIGINT, or raise `StackError` if the stack can't start."""
    os.umask(0o077)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    asyncio.run(Supervisor(options).run())


def main() -> int:
    """Run the supervisor and return the exit status of this process."""
    try:
        run_supervisor(Options.read())
    except StackError as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
