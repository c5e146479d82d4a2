"""Measures the console's pages with a long history: ``python -m benchmarks.console``.

The benchmark starts a stack, and creates an organisation with 100,000 jobs, 50,000 pictures and 500
members. It times the overview and the lists in Chromium, and the lists' pages over HTTP. Then it
simulates 50 open consoles and measures the processor time of the stack's processes.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp

from benchmarks.console_browser import LISTS, OVERVIEWS, PageTimer, open_browser
from benchmarks.console_data import PASSWORD, BenchmarkOrganisation, fill_database
from benchmarks.cost import measure_processes
from benchmarks.farm import Farm, running_farm
from moyin.settings import Settings
from moyin.store.blobs import BlobStore
from moyin.store.sql import Database

_NO_SERVER = "http://127.0.0.1:9"
_OVERVIEW_SECONDS, _LIST_SECONDS, _PERCENT = 1.0, 0.3, 5.0
_HTTP_PAGES = 20
_IDLE_SECONDS, _SETTLING_SECONDS = 30.0, 8.0
# The event streams of the pages Overview, Jobs and Models, and the events with which each begins.
_STREAMS = (
    ("/cluster/events?include=backends&include=usage", ("cluster", "backends", "usage")),
    ("/cluster/events?include=jobs&cluster=false", ("jobs",)),
    ("/cluster/events?include=models&cluster=false", ("models",)),
)
# An open console renews its session at this interval, too.
_RENEW_SECONDS = 240.0
# The lists' pages as the console asks for them, and the members that have the rows and the cursor.
_PATHS = {
    "jobs": ("/jobs?limit=50", "jobs"),
    "gallery": ("/artifacts?limit=48&media_type=image/*", "artifacts"),
    "members": ("/accounts/organisations/{owner}/members?limit=50", "members"),
    "keys": ("/accounts/keys?limit=50&owner={owner}&valid=true", "keys"),
    "audit": ("/accounts/audit?limit=50", "entries"),
    "usage": ("/v1/usage?group_by=day", ""),
}


def main() -> None:
    """Run all measurements of the console and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100_000, help="jobs of the organisation")
    parser.add_argument("--pictures", type=int, default=50_000, help="pictures of the organisation")
    parser.add_argument("--viewers", type=int, default=50, help="open consoles")
    parser.add_argument(
        "--seconds", type=float, default=60, help="duration of the measurement with open consoles"
    )
    parser.add_argument("--rounds", type=int, default=3, help="visits of each page in the browser")
    parser.add_argument("--actors", type=int, default=1, help="ComfyUIs of the stack; 0 for none")
    options = parser.parse_args()
    with running_farm(_NO_SERVER, actors=options.actors) as farm:
        studio = asyncio.run(_create_studio(farm, options.jobs, options.pictures))
        _show_pages(farm, options.rounds)
        asyncio.run(_time_lists(farm, studio))
        asyncio.run(_measure_viewers(farm, options.viewers, options.seconds))


async def _create_studio(farm: Farm, jobs: int, pictures: int) -> BenchmarkOrganisation:
    """Create the organisation, fill the running gateway's database, and return the organisation."""
    async with _open_key_session(farm) as session:
        body = {"name": "The benchmark's studio"}
        async with session.post("/accounts/organisations", json=body) as response:
            response.raise_for_status()
            studio = BenchmarkOrganisation(
                owner=(await response.json())["id"], jobs=jobs, pictures=pictures
            )
    settings = Settings(data=farm.data)
    database = Database(settings.sql_url)
    started_at = time.monotonic()
    try:
        await fill_database(database, BlobStore(settings.blobs_url), studio)
    finally:
        await database.close()
    print(f"filled in {time.monotonic() - started_at:.0f} s: {jobs:,} jobs, {pictures:,} pictures")
    return studio


def _show_pages(farm: Farm, rounds: int) -> None:
    """Measure and print the seconds until Chromium has painted the overview and the lists."""
    administrator = {"email": BenchmarkOrganisation.get_email(0), "password": PASSWORD}
    with open_browser() as browser:
        credentials_by_name = {"administrator": administrator, "operator": {"api_key": farm.key}}
        for name, credentials in credentials_by_name.items():
            cold_seconds, warm_seconds = PageTimer(browser, farm.url, credentials).time_overview(
                OVERVIEWS[name], rounds
            )
            _print_seconds(f"overview of an {name}, empty cache", cold_seconds, _OVERVIEW_SECONDS)
            _print_seconds(f"overview of an {name}, warm cache", warm_seconds, _OVERVIEW_SECONDS)
        pages = PageTimer(browser, farm.url, administrator)
        for page_list in LISTS:
            list_seconds, next_page_seconds = pages.time_list(page_list, rounds + 1)
            _print_seconds(f"{page_list.name}, first click", list_seconds[:1], _LIST_SECONDS)
            _print_seconds(f"{page_list.name}, click to rows", list_seconds[1:], _LIST_SECONDS)
            if next_page_seconds:
                _print_seconds(f"{page_list.name}, next page", next_page_seconds, _LIST_SECONDS)
        requests = Counter(pages.record_requests("/overview", 20))
        print(f"requests of an open overview in 20 s: {dict(requests) or 'none but its stream'}")


async def _time_lists(farm: Farm, studio: BenchmarkOrganisation) -> None:
    """Measure and print the seconds of consecutive pages of each list, read over HTTP."""
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(_open_console_session(farm, 0))
        for name, (path, rows_member) in _PATHS.items():
            seconds, cursor = [], ""
            for _ in range(_HTTP_PAGES):
                started_at = time.perf_counter()
                async with session.get(path.format(owner=studio.owner) + cursor) as response:
                    body = await response.json()
                    assert response.status == 200, body
                seconds.append(time.perf_counter() - started_at)
                last_cursor = (
                    body[rows_member][-1]["id"]
                    if rows_member == "entries"
                    else body.get("next_cursor")
                )
                if rows_member and last_cursor is None:
                    break
                cursor = (
                    f"&{'before' if rows_member == 'entries' else 'cursor'}={last_cursor}"
                    if rows_member
                    else ""
                )
            _print_seconds(f"{name}, over HTTP", seconds, _LIST_SECONDS)


async def _measure_viewers(farm: Farm, viewer_count: int, seconds: float) -> None:
    """Measure and print how much more processor time the stack needs while consoles are open.

    Args:
        viewer_count: the number of open consoles. In turn, they show the overview, the jobs and the
            models. For comparison, one console of each kind is measured first.
        seconds: how long they are measured.
    """
    idle_cpu_seconds = await measure_processes(farm.data, asyncio.sleep(_IDLE_SECONDS))
    for count, duration in ((len(_STREAMS), _IDLE_SECONDS), (viewer_count, seconds)):
        async with AsyncExitStack() as stack:
            sessions = [
                await stack.enter_async_context(_open_console_session(farm, n))
                for n in range(count)
            ]
            events = Counter[str]()
            viewer_tasks = [
                asyncio.create_task(_follow_events(session, _STREAMS[n % len(_STREAMS)][0], events))
                for n, session in enumerate(sessions)
            ]
            try:
                await asyncio.sleep(_SETTLING_SECONDS)
                for n, (_, names) in enumerate(_STREAMS):
                    expected_count = len(sessions[n :: len(_STREAMS)])
                    assert all(events[name] >= expected_count for name in names), (
                        f"each of {names} should have come {expected_count} times, but came: {events}"
                    )
                events.clear()
                cpu_seconds = await measure_processes(farm.data, asyncio.sleep(duration))
                for task in viewer_tasks:
                    assert not task.done(), task.exception()
            finally:
                for task in viewer_tasks:
                    task.cancel()
                await asyncio.gather(*viewer_tasks, return_exceptions=True)
        percent_by_part = {
            part: 100 * (cpu_seconds[part] / duration - idle_cpu_seconds[part] / _IDLE_SECONDS)
            for part in cpu_seconds
        }
        part_texts = ", ".join(
            f"{part} {share:.2f}" for part, share in sorted(percent_by_part.items())
        )
        print(
            f"{count} open consoles take {sum(percent_by_part.values()):.2f} % of a core beyond none "
            f"(goal for {viewer_count}: {_PERCENT:g}): {part_texts}; {dict(events)} events in {duration:g} s",
            flush=True,
        )


async def _follow_events(
    session: aiohttp.ClientSession, stream_path: str, events: Counter[str]
) -> None:
    """Read a page's event stream like a browser until cancelled.

    Args:
        stream_path: the path of the stream.
        events: counts the received events by type.
    """

    async def renew_session() -> None:
        while True:
            await asyncio.sleep(_RENEW_SECONDS)
            for method, path in (("POST", "/accounts/session/renew"), ("GET", "/accounts/whoami")):
                async with session.request(method, path) as response:
                    response.raise_for_status()

    async with asyncio.TaskGroup() as group:
        group.create_task(renew_session())
        async with session.get("/cluster") as response:
            response.raise_for_status()
        async with session.get(stream_path, timeout=aiohttp.ClientTimeout(total=None)) as response:
            response.raise_for_status()
            async for line in response.content:
                if line.startswith(b"event: "):
                    events[line[7:].strip().decode()] += 1


@asynccontextmanager
async def _open_console_session(farm: Farm, number: int) -> AsyncIterator[aiohttp.ClientSession]:
    """Sign in as an administrator of the organisation, and yield the session with its cookie.

    Args:
        number: the number of the member.
    """
    # Cookies of hosts without a name are refused by default.
    cookie_jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(farm.url, cookie_jar=cookie_jar) as session:
        body = {"email": BenchmarkOrganisation.get_email(number), "password": PASSWORD}
        async with session.post("/accounts/session", json=body) as response:
            assert response.status == 200, await response.text()
        yield session


def _open_key_session(farm: Farm) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(farm.url, headers={"authorization": f"Bearer {farm.key}"})


def _print_seconds(description: str, seconds: Sequence[float], goal_seconds: float) -> None:
    median, worst_ms = 1000 * statistics.median(seconds), 1000 * max(seconds)
    sample_note = f"of {len(seconds)}" if len(seconds) > 1 else ""
    print(
        f"{description}: {median:.0f} ms, worst {worst_ms:.0f} {sample_note} "
        f"(goal: {1000 * goal_seconds:.0f})",
        flush=True,
    )


if __name__ == "__main__":
    main()
