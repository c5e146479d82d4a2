from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moyin.errors import OutOfMemory, RenderFailed
from moyin.render.protocol.response import (
    ProgressMeter,
    collect_values,
    get_prompt_id,
    has_succeeded,
    is_last_event,
    list_output_files,
    raise_for_failure,
    to_prompt_record,
)
from moyin.render.protocol.wire import EventMessage, HistoryEntry

STARTED = ("execution_start", {"prompt_id": "p"})
SUCCESS = ("execution_success", {"prompt_id": "p"})


def make_entry(outputs: dict[str, Any], *messages: Any, status: str = "success") -> HistoryEntry:
    return HistoryEntry.model_validate(
        {"outputs": outputs, "status": {"status_str": status, "messages": [STARTED, *messages]}}
    )


def make_file(name: str, file_type: str = "output") -> dict[str, str]:
    return {"filename": name, "subfolder": "p", "type": file_type}


def test_files_are_ordered_by_node_and_separate_from_values() -> None:
    history_entry = make_entry(
        {
            "10": {"images": [make_file("c")]},
            "2": {"images": [make_file("b"), make_file("a", "temp")], "animated": [False]},
            "7": {"text": ["a word"], "images": [make_file("mine", "input")]},
        }
    )
    assert [(w.node, w.slot, w.file.filename) for w in list_output_files(history_entry)] == [
        ("2", "images", "b"),
        ("2", "images", "a"),
        ("10", "images", "c"),
    ]
    assert collect_values(history_entry) == {
        "2": {"animated": [False]},
        "7": {"text": ["a word"], "images": [make_file("mine", "input")]},
    }


@given(st.lists(st.text(max_size=5), unique=True, max_size=5))
def test_node_ids_may_be_any_text(node_ids: list[str]) -> None:
    ids = [*node_ids, "\u00b2", "\u0663", "1" * 5000]
    history_entry = make_entry({node: {"images": [make_file("a")]} for node in ids})
    assert sorted(file.node for file in list_output_files(history_entry)) == sorted(set(ids))


def test_successful_entry_raises_nothing() -> None:
    raise_for_failure(make_entry({}, SUCCESS))


def test_success_is_determined_by_the_messages() -> None:
    """ComfyUI's status is ignored: after an error between nodes, it still says ``success``."""
    cycle_error = {
        "node_id": "4",
        "node_type": "Loop",
        "exception_type": "graph.DependencyCycleError",
        "exception_message": "Dependency cycle detected",
    }
    failed_entry = make_entry({}, ("execution_error", cycle_error))
    assert not has_succeeded(failed_entry)
    record = to_prompt_record(failed_entry, "p")
    assert (record.status, record.completed) == ("error", False)
    with pytest.raises(RenderFailed, match=r"node 4 \(Loop\) failed: Dependency cycle detected"):
        raise_for_failure(failed_entry)
    # An error outweighs a success, whatever their order.
    assert not has_succeeded(make_entry({}, SUCCESS, ("execution_error", cycle_error)))
    assert not has_succeeded(make_entry({}, ("execution_interrupted", {"node_id": "1"}), SUCCESS))
    stale_entry = make_entry({}, SUCCESS, status="error")
    assert has_succeeded(stale_entry)
    assert to_prompt_record(stale_entry, "p").status == "success"


def test_node_error_has_node_and_message_without_traceback() -> None:
    data = {
        "node_id": "3",
        "node_type": "KSampler",
        "exception_type": "torch.OutOfMemoryError",
        "exception_message": "out of memory\n",
        "traceback": ["/home/somebody/…"],
        "current_inputs": {},
    }
    with pytest.raises(OutOfMemory) as exc_info:
        raise_for_failure(make_entry({}, ("execution_error", data), status="error"))
    assert exc_info.value.message == "node 3 (KSampler) failed: out of memory"
    assert exc_info.value.details == {
        "node_id": "3",
        "node_type": "KSampler",
        "exception_type": "torch.OutOfMemoryError",
    }


@pytest.mark.parametrize(
    ("messages", "message"),
    [([("execution_interrupted", {"node_id": "1"})], "interrupted"), ([], "reported no error")],
)
@pytest.mark.parametrize("status", ["success", "error"])
def test_other_failures_raise_their_message(messages: list[Any], message: str, status: str) -> None:
    with pytest.raises(RenderFailed, match=message):
        raise_for_failure(make_entry({}, *messages, status=status))


@pytest.mark.parametrize(
    ("event_type", "data", "is_last"),
    [
        ("executing", {"node": None, "prompt_id": "p"}, True),
        ("executing", {"node": "1", "prompt_id": "p"}, False),
        ("executing", {}, False),
        ("execution_success", {"prompt_id": "p"}, False),
    ],
)
def test_last_event_is_executing_without_a_node(
    event_type: str, data: dict[str, Any], is_last: bool
) -> None:
    assert is_last_event(EventMessage(type=event_type, data=data)) is is_last


def test_an_event_names_its_prompt_or_none() -> None:
    assert get_prompt_id(EventMessage(type="status", data={})) is None
    assert get_prompt_id(EventMessage(type="progress", data={"prompt_id": "p"})) == "p"


def make_state_event(**nodes: Any) -> EventMessage:
    return EventMessage(type="progress_state", data={"prompt_id": "p", "nodes": nodes})


def test_progress_adds_up_over_nodes() -> None:
    meter = ProgressMeter({"a": {}, "b": {}, "c": {}, "d": {}})
    assert (meter.value, meter.max) == (0, 4)
    assert meter.update(EventMessage(type="execution_cached", data={"nodes": ["a", "unknown"]}))
    assert meter.value == 1
    meter.update(
        make_state_event(
            a={"state": "finished"},
            b={"state": "finished", "value": 1, "max": 1},
            c={"state": "running", "value": 5, "max": 20},
            inner={"state": "running", "value": 1, "max": 1},
        )
    )
    assert (meter.value, meter.node) == (2.25, "c")
    assert not meter.update(EventMessage(type="progress", data={"value": 1}))


@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "x"]),
        st.fixed_dictionaries(
            {
                "state": st.sampled_from(["running", "finished", "error", "pending"]),
                "value": st.floats(-10, 1e9),
                "max": st.floats(-1, 1e6),
            }
        ),
    ),
    st.lists(st.sampled_from(["a", "b", "x"])),
)
def test_progress_stays_in_bounds(nodes: dict[str, Any], cached_nodes: list[str]) -> None:
    meter = ProgressMeter({"a": {}, "b": {}})
    meter.update(make_state_event(**nodes))
    meter.update(EventMessage(type="execution_cached", data={"nodes": cached_nodes}))
    assert 0 <= meter.value <= meter.max
