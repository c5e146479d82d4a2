"""Prints the test coverage of each package: by unit tests, by tests on servers, and by either.

Run it with `make coverage`, which measures first. Processes that are killed record no coverage, and
neither does code that runs in ComfyUI, so the real coverage by tests on servers is higher.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from coverage import Coverage
from coverage.exceptions import NoSource

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "coverage"
PARTS = ("unit", "servers")
PACKAGES = ("moyin", "deployments", "actors")


@dataclass
class Row:
    """Counts statements: all, those covered by unit tests, by tests on servers, and by either."""

    statements: int = 0
    unit: int = 0
    servers: int = 0
    either: int = 0

    def __str__(self) -> str:
        shares = (
            f"{100 * n / self.statements:6.1f} %" for n in (self.unit, self.servers, self.either)
        )
        return f"{self.statements:7}" + "".join(f"{share:>11}" for share in shares)


def count_rows(coverages: tuple[Coverage, Coverage]) -> Iterator[tuple[str, Row]]:
    """Yield for each source file the name of its package and its counts.

    Args:
        coverages: the coverage by unit tests, and that by tests on servers.
    """
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            folders = path.relative_to(ROOT).parts[:-1]
            try:
                executed_lines, statements = zip(
                    *(_read_lines(coverage, path) for coverage in coverages), strict=True
                )
            except NoSource:
                continue
            unit, servers = executed_lines
            yield (
                "/".join(folders[:2]),
                Row(len(statements[0]), len(unit), len(servers), len(unit | servers)),
            )


def _read_lines(coverage: Coverage, path: Path) -> tuple[set[int], set[int]]:
    """Return the lines of a file that tests have run, and all its executable lines."""
    _, statements, _, missing_lines, _ = coverage.analysis2(str(path))
    return set(statements) - set(missing_lines), set(statements)


def build_table(package_rows: Iterator[tuple[str, Row]]) -> list[str]:
    """Return the lines of the table: one for each package, and the total."""
    row_by_package: dict[str, Row] = defaultdict(Row)
    for package, row in package_rows:
        for summed_row in (row_by_package[package], row_by_package["total"]):
            summed_row.statements += row.statements
            summed_row.unit += row.unit
            summed_row.servers += row.servers
            summed_row.either += row.either
    header_line = f"{'':24}{'lines':>7}{'unit':>11}{'servers':>11}{'either':>11}"
    names = sorted(row_by_package, key=lambda name: (name == "total", name))
    return [
        header_line,
        *(f"{name:24}{row_by_package[name]}" for name in names if row_by_package[name].statements),
    ]


def main() -> int:
    """Print the table for the data that `make coverage` stored in build/coverage."""
    coverages = [Coverage(data_file=str(FOLDER / name)) for name in PARTS]
    for coverage in coverages:
        coverage.load()
    print(*build_table(count_rows((coverages[0], coverages[1]))), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
