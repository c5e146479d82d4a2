"""Tests that every example in the documents is run by a test or states why not."""

from __future__ import annotations

import pytest

from tests.examples import PLAIN, ROOT, Block, list_blocks, list_pages

BLOCKS = [block for page in list_pages() for block in list_blocks(page)]
# Examples by the modules that run them. `command-…` and `config-…` are run by modules that look for them.
PACKAGING = "tests/unit/packaging"
BY_PREFIX = {
    "command-": f"{PACKAGING}/test_command_examples.py",
    "config-": f"{PACKAGING}/test_config_examples.py",
}
GATEWAY_PAGES = "tests/integration/gateway/test_pages.py"
TEXT_PAGES = "tests/integration/text/test_pages.py"
RUN_BY = {
    "README.md": {"chat": TEXT_PAGES, "render": GATEWAY_PAGES},
    "clients/python/README.md": dict.fromkeys(
        ("example", "install"), "tests/unit/clients/python/test_page.py"
    ),
    "clients/typescript/README.md": dict.fromkeys(
        ("build", "example", "install"), "tests/acceptance/test_typescript_client.py"
    ),
    "docs/accounts.md": dict.fromkeys(
        ("keys", "limits", "player"), "tests/integration/access/test_pages.py"
    ),
    "docs/batches.md": dict.fromkeys(("anthropic", "openai", "result"), TEXT_PAGES),
    "docs/farm.md": {"eta": "tests/integration/gateway/test_jobs.py"},
    "docs/grpc.md": dict.fromkeys(("chat", "list"), "tests/integration/gateway/test_grpc_page.py")
    | {"reflection": "tests/integration/jobs/test_grpc.py"},
    "docs/history.md": dict.fromkeys(("archive", "delete", "link", "list"), GATEWAY_PAGES),
    "docs/ja/quickstart.md": dict.fromkeys(("chat", "variables"), TEXT_PAGES),
    "docs/quickstart.md": dict.fromkeys(("chat", "variables"), TEXT_PAGES)
    | {"pipeline": GATEWAY_PAGES},
    "docs/routing.md": {"route": TEXT_PAGES},
    "docs/studio.md": dict.fromkeys(
        ("chat", "prices", "template"), "tests/acceptance/console/test_newcomer.py"
    ),
    "docs/templates.md": dict.fromkeys(("batch", "submit"), GATEWAY_PAGES)
    | dict.fromkeys(("edits", "images"), "tests/integration/render/test_templates.py"),
    "docs/usage.md": dict.fromkeys(("requests", "usage"), TEXT_PAGES),
}
# Their tests have lists of their own, and fail when a page has another example.
COUNTED_THERE = {
    "docs/clients.md": "tests/acceptance/test_clients_page.py",
    "docs/jobs.md": "tests/integration/gateway/test_jobs_page.py",
}


def test_no_fence_is_overlooked() -> None:
    fence_count = sum(
        line.lstrip().startswith("```")
        for page in list_pages()
        for line in page.read_text().splitlines()
    )
    assert fence_count == 2 * len(BLOCKS)


def test_every_example_is_marked() -> None:
    unmarked_blocks = [
        f"{block.page}: {block.text.partition(chr(10))[0]}"
        for block in BLOCKS
        if block.language not in PLAIN and block.mark is None
    ]
    assert unmarked_blocks == [], (
        "write `<!-- tested: NAME -->` or `<!-- not tested: REASON -->` above"
    )


def test_plain_blocks_have_no_mark() -> None:
    assert [block for block in BLOCKS if block.language in PLAIN and block.mark] == []


@pytest.mark.parametrize(
    "block",
    [block for block in BLOCKS if block.mark == "tested"],
    ids=lambda block: f"{block.page}: {block.name}",
)
def test_a_marked_example_is_run(block: Block) -> None:
    assert block.name is not None
    for prefix, module in BY_PREFIX.items():
        if block.name.startswith(prefix):
            assert (ROOT / module).is_file()
            return
    module = COUNTED_THERE.get(block.page) or RUN_BY[block.page][block.name]
    assert f'"{block.name}"' in (ROOT / module).read_text()


def test_every_example_in_the_table_is_on_its_page() -> None:
    shown_examples = {(block.page, block.name) for block in BLOCKS if block.mark == "tested"}
    assert {(page, name) for page, names in RUN_BY.items() for name in names} <= shown_examples
