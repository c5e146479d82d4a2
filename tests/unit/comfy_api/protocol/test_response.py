from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from moyin.comfy_api.protocol import response as response
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


def make_job(status: JobStatus = JobStatus.SUCCEEDED, **changes: Any) -> Job:
    job = Job(
        id="p", owner="ada", kind="render", status=status, spec="0" * 64, steps=1,
        progress=Progress(), results=(), error=None, attempts=1, priority=3, metadata={},
        created_at=NOON, started_at=NOON, finished_at=NOON if status.is_final else None,
    )  # fmt: skip
    return replace(job, **changes)


def make_spec(**prompt_spec: Any) -> JobSpec:
    step = Step(kind=StepKind.RENDER, payload=GRAPH)
    return JobSpec(kind="render", steps=(step,), comfyui=ComfyPrompt(**prompt_spec))


def make_record(*messages: tuple[str, Any], **outputs: Any) -> PromptRecord:
    return PromptRecord(
        outputs=outputs, meta={"1": {}}, status="success", completed=True, messages=messages
    )


def test_a_queue_row_has_the_clients_data() -> None:
    prompt_spec = make_spec(client_id="c", extra_data={"extra_pnginfo": {}}, outputs=("1",))
    number, prompt_id, graph, extra_data, outputs = response.build_queue_row(
        make_job(), prompt_spec
    )
    assert (prompt_id, graph, outputs) == ("p", GRAPH, ["1"])
    assert extra_data == {"extra_pnginfo": {}, "client_id": "c", "create_time": MILLISECONDS}
    assert number > 0
    assert response.build_queue_row(make_job(), make_spec(front=True))[0] == -number
    assert response.build_queue_row(make_job(), make_spec(number=2.5, front=True))[0] == 2.5


def test_a_queue_row_without_a_spec_is_complete() -> None:
    _, prompt_id, graph, extra_data, outputs = response.build_queue_row(make_job(), None)
    assert (prompt_id, graph, outputs) == ("p", {}, [])
    assert extra_data == {"create_time": MILLISECONDS}


def test_a_history_entry_ends_like_the_job() -> None:
    prompt_record = make_record(
        STARTED, ("execution_success", {"timestamp": 8}), **{"1": {"images": []}}
    )
    entry = response.build_history_entry(make_job(), make_spec(), prompt_record)
    assert entry["status"] == {
        "status_str": "success",
        "completed": True,
        "messages": [list(STARTED), ["execution_success", {"timestamp": 8}]],
    }
    assert (entry["outputs"], entry["meta"]) == ({"1": {"images": []}}, {"1": {}})
    # The job was cancelled after a successful execution.
    entry = response.build_history_entry(make_job(JobStatus.CANCELLED), make_spec(), prompt_record)
    names = [name for name, _ in entry["status"]["messages"]]
    assert names == ["execution_start", "execution_interrupted"]
    assert entry["status"]["status_str"] == "error"


def test_an_interruption_names_the_canceller() -> None:
    canceller = Canceller(kind=CancellerKind.USER, id="usr_1")
    cancelled_job = make_job(JobStatus.CANCELLED, cancelled_by=canceller)
    interruption_message = ("execution_interrupted", {"prompt_id": "p", "node_id": "3"})
    for prompt_record in (None, make_record(STARTED, interruption_message)):
        name, data = response.build_end_message(cancelled_job, prompt_record)
        assert name == "execution_interrupted"
        assert data["cancelled_by"] == {"kind": "user", "id": "usr_1"}
    assert data["node_id"] == "3"
    messages = response.build_history_entry(cancelled_job, make_spec(), None)["status"]["messages"]
    assert messages[-1][1]["cancelled_by"]["id"] == "usr_1"
    assert "cancelled_by" not in response.build_end_message(make_job(), make_record(STARTED))[1]


def test_a_failure_uses_comfyuis_message_if_there_is_one() -> None:
    failed_job = make_job(JobStatus.FAILED, error=JobError(code="render_failed", message="node 1"))
    assert response.build_end_message(failed_job, make_record(STARTED, ERROR)) == ERROR
    lost_worker_error = JobError(code="worker_lost", message="gone", details={"node_id": "1"})
    name, data = response.build_end_message(
        make_job(JobStatus.FAILED, error=lost_worker_error), None
    )
    assert name == "execution_error"
    assert data == {
        "prompt_id": "p", "node_id": "1", "node_type": "", "executed": [],
        "timestamp": MILLISECONDS, "exception_message": "gone", "exception_type": "worker_lost",
        "traceback": [], "current_inputs": {}, "current_outputs": [],
    }  # fmt: skip


def test_a_failure_without_a_node_has_the_strings_that_the_frontend_requires() -> None:
    late_job = make_job(
        JobStatus.FAILED, error=JobError(code="deadline_exceeded", message="too late")
    )
    body = response.build_job_summary(late_job, None, None)["execution_error"]
    # If one of these is not a string, the frontend shows no jobs at all.
    field_names = ("node_id", "node_type", "exception_message", "exception_type")
    assert [body[name] for name in field_names] == ["", "", "too late", "deadline_exceeded"]


def test_a_job_is_pending_until_it_begins() -> None:
    assert response.get_job_state(make_job(JobStatus.QUEUED, started_at=None)) == "pending"
    assert response.get_job_state(make_job(JobStatus.RUNNING, started_at=NOON)) == "in_progress"
    assert response.get_job_state(make_job(JobStatus.CANCELLED)) == "cancelled"


def test_a_summary_prefers_a_saved_file_to_a_preview() -> None:
    preview, output = {"filename": "t", "type": "temp"}, {"filename": "o", "type": "output"}
    outputs = {"1": {"images": [preview, output], "text": ["a word"]}}
    prompt_spec = make_spec(extra_data={"extra_pnginfo": {"workflow": {"id": "w"}}})
    body = response.build_job_summary(make_job(), prompt_spec, make_record(STARTED, **outputs))
    assert body["outputs_count"] == 2
    assert body["preview_output"] == {"nodeId": "1", "mediaType": "images", **output}
    assert (body["workflow_id"], body["execution_start_time"]) == ("w", 7)
    assert "execution_error" not in body


def test_details_of_an_open_job_have_no_outputs_yet() -> None:
    body = response.build_job_detail(make_job(JobStatus.RUNNING), make_spec(), None)
    assert body["workflow"]["prompt"] == GRAPH
    assert not body.keys() & {"outputs", "execution_status", "execution_end_time"}
    failed_job = make_job(JobStatus.FAILED)
    body = response.build_job_detail(failed_job, make_spec(), make_record(STARTED, ERROR))
    assert body["execution_error"] == ERROR[1]
    assert body["execution_status"]["status_str"] == "error"
