"""Tests on a whole farm, with raw bytes, that path traversal reaches no file of the machine."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.gateway.raw_http import RawResponse, send_request
from tests.stack import RunningStack

CANARY = f"canary-{secrets.token_hex(16)}"
# Part of the name of each file that a test tries to write; nothing else has this name.
EVIL = "evil0c9b2f61d7"
UP = ("../canary", "..%2fcanary", "%2e%2e/canary", "%2e%2e%2fcanary", "..%252fcanary",
      "..%5ccanary", "..\\canary", "%2e%2e%5ccanary", "....//canary", "%c0%ae%c0%ae/canary",
      "..%00/canary", "./../canary", "a/../../canary")  # fmt: skip
DEEP = "..%2f" * 12 + "etc%2fpasswd"
LONG = "a" * 4_000


@pytest.fixture(scope="module", autouse=True)
def canary(gateway: RunningStack) -> Iterator[Path]:
    """Create a file in the stack's data folder that must never be served."""
    path = gateway.data / "canary"
    path.write_text(CANARY)
    yield path
    assert path.read_text() == CANARY
    path.unlink()


@pytest.fixture
def headers(gateway: RunningStack) -> dict[str, str]:
    return {"Authorization": f"Bearer {gateway.api_key}"}


_BY_PATH = (
    "/artifacts/{}", "/jobs/{}", "/jobs/x/artifacts/{}", "/templates/{}", "/api/v2/assets/{}/content",
    "/api/v2/jobs/{}", "/comfy/{}", "/comfy/assets/{}", "/comfy/templates/{}", "/comfy/docs/{}",
    "/experiment/models/preview/checkpoints/0/{}", "/models/{}",
    "/v1/models/{}", "/v1/requests/{}", "/accounts/users/{}",
)  # fmt: skip
PATHS = (
    *(route.format(up) for route in _BY_PATH for up in (*UP, DEEP)),
    "/artifacts/..", "/artifacts/%2fetc%2fpasswd", f"/artifacts/{LONG}", "/artifacts/%00",
    "/artifacts/signed/x/../../../canary", "/jobs/x/artifacts/..", "/comfy/..", "/comfy//etc/passwd",
    "/comfy/%2fetc%2fpasswd", f"/comfy/{LONG}",
)  # fmt: skip
NAMES = (
    *(f"/view?filename={up}" for up in (*UP, DEEP)),
    *(f"/api/view?filename=canary&subfolder={up}" for up in ("..", "../..", "/", "a/../..", "..%5c")),
    "/view?filename=/etc/passwd", "/view?filename=%2fetc%2fpasswd&type=input",
    "/view?filename=a.png&type=../output", "/view?filename=..", f"/view?filename={LONG}",
    "/view?filename=../canary%20[input]", "/view?filename=a&subfolder=../../..&type=temp",
)  # fmt: skip
USERDATA = (
    *(f"/userdata/{up}" for up in (*UP, DEEP)),
    *(f"/api/userdata/{up}" for up in UP),
    "/userdata/%2fetc%2fpasswd", "/userdata//etc/passwd", "/userdata/a%2f..%2f..%2fcanary",
    "/userdata/c:%5cwindows", f"/userdata/{LONG}", "/userdata?dir=../", "/userdata?dir=/etc",
    "/v2/userdata?path=..%2f..",
)  # fmt: skip
# There is nothing of this name, the name is invalid, or no pool that could know it is running.
NOT_FOUND = {
    "route_not_found", "artifact_not_found", "job_not_found", "template_not_found",
    "model_not_found", "request_not_found", "not_found", "service_unavailable", "invalid_request", "path_refused", "invalid_token",
}  # fmt: skip


@pytest.mark.parametrize(
    ("targets", "codes"),
    [
        (PATHS, NOT_FOUND),
        (NAMES, {"invalid_request", "artifact_not_found"}),
        (USERDATA, {"path_refused", "route_not_found", "invalid_request", "file_not_found"}),
    ],
    ids=["paths", "names", "userdata"],
)
async def test_path_traversal_reads_no_file(
    gateway: RunningStack, headers: dict[str, str], targets: tuple[str, ...], codes: set[str]
) -> None:
    responses = {
        target: await send_request(gateway.ports.door, target, headers=headers)
        for target in targets
    }
    for target, response in responses.items():
        assert CANARY.encode() not in response.body, target
        assert b"root:" not in response.body, target
    wrong_responses = [
        f"{target[:80]}: {response.status} {response.code} {response.body[:80]!r}"
        for target, response in responses.items()
        if response.status not in (400, 403, 404, 503) or response.code not in codes
    ]
    assert not wrong_responses, "\n".join(wrong_responses)


async def test_path_traversal_writes_no_file(
    gateway: RunningStack, headers: dict[str, str]
) -> None:
    userdata_before = await send_request(gateway.ports.door, "/v2/userdata", headers=headers)
    for name in (
        f"..%2f{EVIL}", f"%2e%2e%2f{EVIL}", f"%2ftmp%2f{EVIL}", f"..%5c{EVIL}", f"a%2f..%2f..%2f{EVIL}",
        f"..%252f{EVIL}", f"a%00{EVIL}", f"x/move/..%2f{EVIL}", f"..%2f{EVIL}/move/x",
    ):  # fmt: skip
        for base_path in ("", "/api"):
            response = await send_request(
                gateway.ports.door,
                f"{base_path}/userdata/{name}",
                method="POST",
                headers=headers,
                body=b"x",
            )
            outcome = (response.status, response.code)
            assert outcome in ((403, "path_refused"), (404, "route_not_found")), (name, outcome)
    userdata_after = await send_request(gateway.ports.door, "/v2/userdata", headers=headers)
    assert userdata_after.body == userdata_before.body
    assert _list_written_files(gateway) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("subfolder", f"../{EVIL}"), ("subfolder", f"/tmp/{EVIL}"), ("subfolder", f"a/../../{EVIL}"),
        ("subfolder", f"..\\{EVIL}"), ("subfolder", f"a\0{EVIL}"), ("type", f"../{EVIL}"),
        ("subfolder", EVIL * 30),
    ],
)  # fmt: skip
async def test_an_upload_stays_in_its_folder(
    gateway: RunningStack, headers: dict[str, str], field: str, value: str
) -> None:
    response = await _upload(gateway, headers, f"{EVIL}.png", **{field: value})
    assert (response.status, response.code) == (400, "invalid_request"), response
    assert _list_written_files(gateway) == []


@pytest.mark.parametrize(
    "name",
    [f"../../{EVIL}.png", f"/tmp/{EVIL}.png", f"a/../../{EVIL}.png", f"..\\..\\{EVIL}.png",
     f"a\0{EVIL}.png", "..", f"C:\\{EVIL}.png", EVIL * 40 + ".png"],
)  # fmt: skip
async def test_upload_name_is_reduced_to_a_file_name(
    gateway: RunningStack, headers: dict[str, str], name: str
) -> None:
    upload_response = await _upload(gateway, headers, name)
    if upload_response.status == 200:
        assert f'"name":"{EVIL}' in upload_response.body.decode(), upload_response
    else:
        assert (upload_response.status, upload_response.code) == (400, "invalid_request"), (
            upload_response
        )
    target = f"/artifacts?name=..%2f..%2f{EVIL}.txt"
    artifact_response = await send_request(
        gateway.ports.door, target, method="POST", headers=headers, body=b"x"
    )
    assert (
        artifact_response.status,
        f'"name":"{EVIL}.txt"' in artifact_response.body.decode(),
    ) == (201, True), artifact_response
    assert _list_written_files(gateway) == []


async def _upload(
    gateway: RunningStack, headers: dict[str, str], name: str, **fields: str
) -> RawResponse:
    form_parts = [
        f'Content-Disposition: form-data; name="image"; filename="{name}"\r\n'
        "Content-Type: image/png\r\n\r\nx",
        *(f'Content-Disposition: form-data; name="{k}"\r\n\r\n{v}' for k, v in fields.items()),
    ]
    body = (
        "".join(f"--b0undary\r\n{form_part}\r\n" for form_part in form_parts) + "--b0undary--\r\n"
    )
    return await send_request(
        gateway.ports.door,
        "/upload/image",
        method="POST",
        headers={**headers, "Content-Type": "multipart/form-data; boundary=b0undary"},
        body=body.encode(),
    )


def _list_written_files(gateway: RunningStack) -> list[str]:
    """Return the files of this test that were written to any folder that a bad path could reach."""
    folders = (gateway.data.parent, Path("/tmp"), Path.cwd())
    globs = [folder.rglob if folder == gateway.data.parent else folder.glob for folder in folders]
    return [str(path) for find_files in globs for path in find_files(f"*{EVIL}*")]
