"""Translates the probabilities of tokens, whose format OpenAI's and Ollama's protocols share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from moyin.domain.chat import TokenLogprob
from moyin.errors import InvalidRequest
from moyin.http.validation import require_text

MAX_ALTERNATIVES = 20


def read_requested_logprobs(logprobs: bool | None, top_logprobs: int | None) -> int | None:
    """Return the number of alternatives that the client wants for each token of the answer.

    The result is None if the client requests no probabilities.

    Raises:
        InvalidRequest: the members contradict each other, or the number is too large.
    """
    if top_logprobs and not logprobs:
        raise InvalidRequest("top_logprobs: requires 'logprobs': true", field="top_logprobs")
    if not logprobs:
        return None
    count = top_logprobs or 0
    if not 0 <= count <= MAX_ALTERNATIVES:
        raise InvalidRequest(
            f"top_logprobs: must be from 0 to {MAX_ALTERNATIVES}", field="top_logprobs"
        )
    return count


def logprobs_to_domain(
    token_logprobs: Iterable[Mapping[str, Any]] | None,
) -> tuple[TokenLogprob, ...]:
    """Translate the probabilities of tokens in a back end's answer.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: an item is malformed.
    """
    return tuple(
        _token_to_domain(
            token_logprob, tuple(map(_token_to_domain, token_logprob.get("top_logprobs") or ()))
        )
        for token_logprob in token_logprobs or ()
    )


def _token_to_domain(
    token_logprob: Mapping[str, Any], alternatives: tuple[TokenLogprob, ...] = ()
) -> TokenLogprob:
    data = token_logprob.get("bytes")
    return TokenLogprob(
        token=require_text(token_logprob["token"]),
        logprob=float(token_logprob["logprob"]),
        data=None if data is None else bytes(data),
        alternatives=alternatives,
    )


def encode_logprobs(token_logprobs: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    """Encode the probabilities of tokens for a client."""
    return [
        _encode_token(token_logprob)
        | {
            "top_logprobs": [
                _encode_token(alternative) for alternative in token_logprob.alternatives
            ]
        }
        for token_logprob in token_logprobs
    ]


def _encode_token(token_logprob: TokenLogprob) -> dict[str, Any]:
    data = (
        token_logprob.token.encode(errors="surrogatepass")
        if token_logprob.data is None
        else token_logprob.data
    )
    return {"token": token_logprob.token, "logprob": token_logprob.logprob, "bytes": list(data)}
