from __future__ import annotations

from moyin.text.batches.pacer import Pacer


async def test_a_few_lines_begin_between_two_pauses() -> None:
    events: list[str] = []

    async def sleep(seconds: float) -> None:
        events.append("pause")

    pacer = Pacer(sleep)
    for _ in range(5):
        await pacer.wait()
        events.append("line")
    assert events == ["line", "line", "pause", "line", "line", "pause", "line"]
