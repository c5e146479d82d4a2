"""Displays one job or one batch on a terminal; a pipe gets JSON instead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from rich.filesize import decimal

from moyin.cli.screen import clean_text, describe_value, out, print_pairs, print_records
from moyin.cli.usage import format_cost

_MAX_TEXT = 300
_NORMAL_PRIORITY = 3
_ENDS = ("completed_at", "failed_at", "expired_at", "cancelled_at")


def print_job(job: Mapping[str, Any]) -> None:
    """Print a job's values, then tables of its finished steps or child jobs, and of its files."""
    _print_pairs(_describe_job(job))
    if job["children"] is not None:
        out.print()
        print_records(
            ("child", "status", "inputs", "files"), map(_build_child_row, job["children"])
        )
    elif job["outputs"]:
        step_kinds = [step["kind"] for step in (job["submitted"] or {}).get("steps", ())]
        out.print()
        print_records(
            ("step", "kind", "back end", "cost", "result"),
            (_build_step_row(output, step_kinds) for output in job["outputs"]),
            right_aligned=("cost",),
        )
    if job["artifacts"]:
        out.print()
        print_records(
            ("file", "name", "type", "size"),
            ((f["id"], f["name"], f["media_type"], decimal(f["size"])) for f in job["artifacts"]),
            right_aligned=("size",),
        )


def print_batch(batch: Mapping[str, Any]) -> None:
    """Print a batch of text requests as names with values."""
    counts = batch["request_counts"]
    ended_at = next((batch[name] for name in _ENDS if batch[name] is not None), None)
    pairs: list[tuple[str, object]] = [
        ("id", batch["id"]),
        ("status", batch["status"]),
        ("endpoint", batch["endpoint"]),
        ("lines", counts["total"]),
        ("answered", counts["completed"]),
        ("failed", counts["failed"]),
        ("input", batch["input_file_id"]),
        ("answers", batch["output_file_id"]),
        ("errors", batch["error_file_id"]),
        ("created (UTC)", _format_time(batch["created_at"])),
        ("ended (UTC)", _format_time(ended_at)),
        ("expires (UTC)", None if ended_at is not None else _format_time(batch["expires_at"])),
        ("metadata", batch["metadata"] or None),
    ]
    for error in (batch["errors"] or {}).get("data", ()):
        pairs.append(("error", f"{error['code']}: {error['message']}"))
    _print_pairs(pairs)


def describe_status(job: Mapping[str, Any]) -> str:
    """Return the status of a job, for a running one with its progress, such as ``running 42%``."""
    if job["status"] != "running":
        return str(job["status"])
    return f"running {measure_progress(job):.0%}"


def measure_progress(job: Mapping[str, Any]) -> float:
    """Return the completed share of a job, from 0 to 1."""
    progress = job["progress"]
    if job["status"] == "succeeded":
        return 1.0
    share = progress["value"] / (progress["max"] or 1)
    if job["kind"] != "pipeline":
        # The share of a batch already counts all children, and its `step` is one of them.
        return float(share)
    return float((progress["step"] + share) / max(1, job["steps"]))


def _describe_job(job: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    yield "id", job["id"]
    yield "kind", job["kind"]
    yield "status", describe_status(job)
    if (error := job["error"]) is not None:
        yield "error", f"{error['code']}: {error['message']}"
    yield "place in queue", job["position"]
    if (eta := job["eta"]) is not None:
        yield "starts", _describe_seconds(eta["starts_in"])
        yield "ends", _describe_seconds(eta["ends_in"])
    if job["cancelled_by"] is not None:
        yield "cancelled by", f"{job['cancelled_by']['kind']} {job['cancelled_by']['id'] or ''}"
    yield "created (UTC)", _format_iso(job["created_at"])
    yield "started (UTC)", _format_iso(job["started_at"])
    if job["finished_at"] is not None:
        yield "ended (UTC)", _format_iso(job["finished_at"])
        if job["started_at"] is not None:
            finished_at, started_at = map(
                datetime.fromisoformat, (job["finished_at"], job["started_at"])
            )
            yield "took", f"{(finished_at - started_at).total_seconds():.1f} s"
    yield "attempts", job["attempts"] if job["attempts"] > 1 else None
    yield "priority", job["priority"] if job["priority"] != _NORMAL_PRIORITY else None
    cost = format_cost(str(job["cost_usd"]))
    yield "cost", f"{cost} (kept results)" if job["cached"] else cost
    yield "metadata", job["metadata"] or None


def _build_step_row(output: Mapping[str, Any], step_kinds: list[str]) -> tuple[object, ...]:
    step = output["step"]
    return (
        step,
        step_kinds[step] if step < len(step_kinds) else None,
        output["backend"],
        format_cost(str(output["cost_usd"])),
        _describe_output(output),
    )


def _describe_output(output: Mapping[str, Any]) -> str:
    names = [artifact["name"] for artifact in output["artifacts"]]
    if names or output["cached"]:
        return ", ".join([*names, *(["kept result"] if output["cached"] else [])])
    output_text = output["text"]
    if output_text is None:
        output_text = "" if output["body"] is None else describe_value(output["body"])
    # Not cut between words, because Chinese and Japanese have no spaces.
    output_text = " ".join(output_text.split())
    return output_text if len(output_text) <= _MAX_TEXT else f"{output_text[:_MAX_TEXT]}…"


def _build_child_row(child: Mapping[str, Any]) -> tuple[object, ...]:
    error = child["error"]
    status = child["status"] if error is None else f"{child['status']}: {error['code']}"
    names = [artifact["name"] for artifact in child["artifacts"]]
    return child["index"], status, child["inputs"], names


def _describe_seconds(estimate: Mapping[str, float] | None) -> str | None:
    if estimate is None:
        return None
    return f"in {estimate['p50']:.0f} s probably, {estimate['p90']:.0f} s at most (9 of 10)"


def _format_iso(iso_time: str | None) -> str | None:
    return None if iso_time is None else iso_time[:19].replace("T", " ")


def _format_time(seconds: int | None) -> str | None:
    return None if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"


def _print_pairs(pairs: Iterable[tuple[str, object]]) -> None:
    """Print the names that have a value; control characters in the values are replaced."""
    print_pairs(
        ((name, clean_text(describe_value(v))) for name, v in pairs if v is not None), indent=0
    )
