from __future__ import annotations

import pytest

from moyin.errors import InvalidRequest
from moyin.jobs.protocol.paths import check_path


@pytest.mark.parametrize(
    "path",
    ["/", "/v1/models", "/v1/models?x=../y", "/a%20b", "/jobsite", "/x/jobs", "/a.b/..c", "/a//b"],
)
def test_plain_paths_are_allowed(path: str) -> None:
    check_path(path, field="path")


@pytest.mark.parametrize(
    "path",
    ["", "v1", "http://evil.example/", "//evil.example", "/\\evil.example", "\\\\evil", "/a b",
     "/a\nb", "/a#b", "/..", "/a/../b", "/a/%2e%2e/b", "/a/%252e%252E/b", "/a/./b", "/a%5c..%5cb",
     "/jobs", "/jobs/", "/jobs/1/retry", "/jobs?x=1", "/Jobs", "/%6aobs", "/%256aobs", "/.//jobs",
     "/jobs%2f1", "///jobs", "/%2fjobs", "/prompt", "/api/prompt", "/api/v2/jobs", "/comfy/api/prompt",
     "/v1/images/generations", "/accounts", "/accounts/keys", "/%61ccounts/me"],
)  # fmt: skip
def test_other_paths_are_refused(path: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_path(path, field="steps.0.request.path")
    assert refused.value.field == "steps.0.request.path"
