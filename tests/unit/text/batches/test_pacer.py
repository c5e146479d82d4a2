from __future__ import annotations

from moyin.text.batches.pacer import Pacer


async def test_a_few_lines_begin_between_two_pauses() -> None:
    done: list[str] = []

    async def sleep(seconds: float) -> None:
        done.append("pause")

    pacer = Pacer(sleep)
    for _ in range(5):
        await pacer.wait()
        done.append("line")
    assert done == ["line", "line", "pause", "line", "line", "pause", "line"]
