from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from moyin.comfy_api.protocol import response as answers
from moyin.domain.job import (
    Canceller,
    CancellerKind,
    Job,
    JobError,
    JobSpec,
    JobStatus,
    Progress,
    Step,
    StepKind,
)
from moyin.domain.prompt import ComfyPrompt, PromptRecord

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
MILLISECONDS = int(NOON.timestamp() * 1_000)
GRAPH = {"1": {"class_type": "SaveImage", "inputs": {}}}
STARTED = ("execution_start", {"prompt_id": "p", "timestamp": 7})
ERROR = ("execution_error", {"prompt_id": "p", "node_id": "1", "timestamp": 9})


def job(status: JobStatus = JobStatus.SUCCEEDED, **changes: Any) -> Job:
    plain = Job(
        id="p", owner="ada", kind="render", status=status, spec="0" * 64, steps=1,
        progress=Progress(), results=(), error=None, attempts=1, priority=3, metadata={},
        created_at=NOON, started_at=NOON, finished_at=NOON if status.is_final else None,
    )  # fmt: skip
    return replace(plain, **changes)


def spec(**asked: Any) -> JobSpec:
    step = Step(kind=StepKind.RENDER, payload=GRAPH)
    return JobSpec(kind="render", steps=(step,), comfyui=ComfyPrompt(**asked))


def record(*messages: tuple[str, Any], **outputs: Any) -> PromptRecord:
    return PromptRecord(
        outputs=outputs, meta={"1": {}}, status="success", completed=True, messages=messages
    )


def test_a_row_is_what_the_client_asked_for() -> None:
    asked = spec(client_id="c", extra_data={"extra_pnginfo": {}}, outputs=("1",))
    number, prompt_id, graph, extra, outputs = answers.queue_row(job(), asked)
    assert (prompt_id, graph, outputs) == ("p", GRAPH, ["1"])
    assert extra == {"extra_pnginfo": {}, "client_id": "c", "create_time": MILLISECONDS}
    assert number > 0
    assert answers.queue_row(job(), spec(front=True))[0] == -number
    assert answers.queue_row(job(), spec(number=2.5, front=True))[0] == 2.5


def test_a_row_whose_spec_is_not_known_is_still_one() -> None:
    _, prompt_id, graph, extra, outputs = answers.queue_row(job(), None)
    assert (prompt_id, graph, outputs) == ("p", {}, [])
    assert extra == {"create_time": MILLISECONDS}


def test_a_history_ends_as_the_job_did() -> None:
    told = record(STARTED, ("execution_success", {"timestamp": 8}), **{"1": {"images": []}})
    entry = answers.history_entry(job(), spec(), told)
    assert entry["status"] == {
        "status_str": "success",
        "completed": True,
        "messages": [list(STARTED), ["execution_success", {"timestamp": 8}]],
    }
    assert (entry["outputs"], entry["meta"]) == ({"1": {"images": []}}, {"1": {}})
    # Cancelled after its execution had ended well.
    entry = answers.history_entry(job(JobStatus.CANCELLED), spec(), told)
    names = [name for name, _ in entry["status"]["messages"]]
    assert names == ["execution_start", "execution_interrupted"]
    assert entry["status"]["status_str"] == "error"


def test_an_interruption_says_by_whom_whether_comfyui_knew_of_it_or_not() -> None:
    by = Canceller(kind=CancellerKind.USER, id="usr_1")
    cancelled = job(JobStatus.CANCELLED, cancelled_by=by)
    interrupted = ("execution_interrupted", {"prompt_id": "p", "node_id": "3"})
    for told in (None, record(STARTED, interrupted)):
        name, data = answers.ending(cancelled, told)
        assert name == "execution_interrupted"
        assert data["cancelled_by"] == {"kind": "user", "id": "usr_1"}
    assert data["node_id"] == "3"
    messages = answers.history_entry(cancelled, spec(), None)["status"]["messages"]
    assert messages[-1][1]["cancelled_by"]["id"] == "usr_1"
    assert "cancelled_by" not in answers.ending(job(), record(STARTED))[1]


def test_a_failure_is_told_in_comfyuis_words_where_it_has_any() -> None:
    failed = job(JobStatus.FAILED, error=JobError(code="render_failed", message="node 1"))
    assert answers.ending(failed, record(STARTED, ERROR)) == ERROR
    lost = JobError(code="worker_lost", message="gone", details={"node_id": "1"})
    name, data = answers.ending(job(JobStatus.FAILED, error=lost), None)
    assert name == "execution_error"
    assert data == {
        "prompt_id": "p", "node_id": "1", "node_type": "", "executed": [],
        "timestamp": MILLISECONDS, "exception_message": "gone", "exception_type": "worker_lost",
        "traceback": [], "current_inputs": {}, "current_outputs": [],
    }  # fmt: skip


def test_where_no_node_is_to_blame_a_failure_has_the_members_that_the_frontend_insists_on() -> None:
    late = job(JobStatus.FAILED, error=JobError(code="deadline_exceeded", message="too late"))
    told = answers.job_summary(late, None, None)["execution_error"]
    # One that is no text, and its list of jobs is an empty one.
    texts = ("node_id", "node_type", "exception_message", "exception_type")
    assert [told[name] for name in texts] == ["", "", "too late", "deadline_exceeded"]


def test_a_job_is_pending_until_it_is_taken_up() -> None:
    assert answers.state_of(job(JobStatus.RUNNING)) == "pending"
    assert answers.state_of(job(JobStatus.RUNNING, begun_at=NOON)) == "in_progress"
    assert answers.state_of(job(JobStatus.CANCELLED)) == "cancelled"


def test_a_summary_shows_a_saved_file_before_a_preview() -> None:
    preview, saved = {"filename": "t", "type": "temp"}, {"filename": "o", "type": "output"}
    outputs = {"1": {"images": [preview, saved], "text": ["a word"]}}
    asked = spec(extra_data={"extra_pnginfo": {"workflow": {"id": "w"}}})
    told = answers.job_summary(job(), asked, record(STARTED, **outputs))
    assert told["outputs_count"] == 2
    assert told["preview_output"] == {"nodeId": "1", "mediaType": "images", **saved}
    assert (told["workflow_id"], told["execution_start_time"]) == ("w", 7)
    assert "execution_error" not in told


def test_details_of_an_open_job_have_no_outputs_yet() -> None:
    told = answers.job_detail(job(JobStatus.RUNNING), spec(), None)
    assert told["workflow"]["prompt"] == GRAPH
    assert not told.keys() & {"outputs", "execution_status", "execution_end_time"}
    failed = job(JobStatus.FAILED)
    told = answers.job_detail(failed, spec(), record(STARTED, ERROR))
    assert told["execution_error"] == ERROR[1]
    assert told["execution_status"]["status_str"] == "error"
