"""Finds request features that a back end's API does not support, before the back end is called."""

from __future__ import annotations

import time
from collections.abc import Mapping

from moyin.domain.chat import Image
from moyin.domain.needs import Needs
from moyin.errors import MoyinError, RequestError, UnsupportedFeature
from moyin.text.protocol.codec import ParsedRequest, ProtocolCodec
from moyin.text.routing.backend_runtime import BackendRuntime
from moyin.text.routing.compiled_route import CompiledRoute, Exclusion, RouteTarget
from moyin.text.routing.decision import build_unavailable_error
from moyin.text.routing.tool_schemas import limit_schemas

# Calls that many servers of an API format lack and answer with 404. OpenAI's chat models, for
# example, have no text completions.
OPTIONAL_PATHS = frozenset({"/completions"})
# Placeholder for a picture that would be fetched from its URL.
_PICTURE = Image(media_type="image/png", data="")


def find_gap(
    codec: ProtocolCodec,
    request: ParsedRequest,
    needs: Needs,
    target: RouteTarget,
    *,
    fetches_pictures: bool,
) -> RequestError | None:
    """Check whether a target can accept a request, without calling the target.

    Args:
        fetches_pictures: True if the router fetches pictures for back ends that do not.

    Returns:
        None if it can. Otherwise the error: the request has a feature that the back end's API or
        the gateway's limits do not allow, for example a seed for Claude.
    """
    runtime = target.runtime
    try:
        if runtime.checks_schemas:
            request = limit_schemas(codec, request)
        if not runtime.backend.fetches_pictures:
            request = _embed_pictures(request, needs, fetches_pictures=fetches_pictures)
        if needs_translation(target, codec.path, needs):
            domain_request = request.to_domain(target.deployment.model.upstream)
            runtime.backend.check_request(domain_request)
    except RequestError as error:
        return error
    return None


def needs_translation(target: RouteTarget, path: str, needs: Needs) -> bool:
    """Return True if the client's bytes cannot be forwarded to a target.

    Args:
        path: the path of the call relative to a back end's base URL.
    """
    pass_through = target.runtime.pass_through
    if target.needs_translation or pass_through is None:
        return True
    if needs.has_files and not pass_through.reads_files:
        return True
    return path in OPTIONAL_PATHS and _lacks_call(
        target.runtime, path, target.deployment.model.upstream
    )


def require_no_urls(needs: Needs) -> None:
    """Raise UnsupportedFeature if a request references documents by URL.

    A server in our network would fetch any URL, including internal ones.
    """
    if needs.has_urls:
        raise UnsupportedFeature(
            "the chosen back end cannot fetch documents by URL; send their content",
            field="messages",
        )


def new_picture_url_error() -> UnsupportedFeature:
    """Return the error for pictures given by URL if neither router nor back end can fetch them."""
    return UnsupportedFeature(
        "the chosen back end does not support pictures by URL; send them as base64",
        field="messages",
    )


def describe_gaps(gaps: Mapping[RouteTarget, RequestError]) -> list[Exclusion]:
    """Return the exclusions of targets whose back end does not support the request."""
    return [
        Exclusion(
            deployment=target.deployment,
            reason=error.message,
            code=error.code,
            parameters={"field": error.field},
        )
        for target, error in gaps.items()
    ]


def build_gap_error(
    route: CompiledRoute, needs: Needs, gaps: Mapping[RouteTarget, RequestError]
) -> MoyinError:
    """Return the error for a request that no target supports.

    Args:
        gaps: for each target, the error that shows what its back end does not support. The first
            target is the one that would have been called first.
    """
    first_error = next(iter(gaps.values()))
    if not isinstance(first_error, UnsupportedFeature):
        return first_error
    formats = {
        target.deployment.api_format
        for target, error in gaps.items()
        if isinstance(error, UnsupportedFeature)
    }
    return build_unavailable_error(route, needs, formats) or first_error


def _lacks_call(runtime: BackendRuntime, path: str, upstream: str) -> bool:
    """Return True if the server recently reported that it does not support a call for a model.

    Args:
        path: the path of the call relative to the back end's base URL.
        upstream: the back end's name of the model.
    """
    return time.monotonic() < runtime.missing_calls.get((path, upstream), 0.0)


def _embed_pictures(
    request: ParsedRequest, needs: Needs, *, fetches_pictures: bool
) -> ParsedRequest:
    require_no_urls(needs)
    if not needs.vision or not (urls := request.picture_urls):
        return request
    if not fetches_pictures:
        raise new_picture_url_error()
    return request.with_pictures(dict.fromkeys(urls, _PICTURE))
