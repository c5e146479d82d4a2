"""Implements OpenAI's requests with files: audio to text, and pictures to pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from moyin.domain.money import Usage
from moyin.domain.needs import count_utf8_bytes
from moyin.domain.operation import Operation, OperationUsage
from moyin.errors import InvalidRequest, UnsupportedFeature
from moyin.http.multipart import EncodedForm, FormFile, MultipartForm
from moyin.http.validation import new_malformed_response_error
from moyin.text.protocol.openai.operations import (
    EVENT_STREAM_TYPE,
    JSON_TYPE,
    UpstreamBody,
    complete_images,
    read_token_usage,
)

MAX_IMAGES = 10
_AUTO = "auto"
_SINGLE_FIELDS = ("model", "prompt", "n")
_MAX_NAME = 256
# The fewest bytes per second of speech that low-bitrate formats such as Opus and AMR need.
_MIN_BYTES_PER_SECOND = 500
# A client may forge the duration in a file's header, so money is reserved for at least the duration
# at this typical bitrate.
_TYPICAL_BYTES_PER_SECOND = 3_000
# The assumed bitrate of files whose duration cannot be read.
_ASSUMED_BYTES_PER_SECOND = 4_000
# Upper bound of the tokens that models read or write per second of audio.
_MAX_TOKENS_PER_SECOND = 25
# Upper bound of the tokens that models read (at the highest fidelity) or write per picture.
_MAX_TOKENS_PER_IMAGE = 10_000
_TEXT_TYPES = frozenset({"text/plain", "text/vtt", "text/srt", "application/x-subrip"})


class _UploadRequest:
    """Base of requests whose body is a multipart form."""

    def __init__(self, form: MultipartForm) -> None:
        for name in _SINGLE_FIELDS:
            # Servers differ in which one of several values they use.
            if sum(field == name for field, _ in form.fields) > 1:
                raise InvalidRequest(f"{name}: must be sent only once", field=name)
        self.form = form
        self.model = _read_model(form)

    def to_upstream(self, model: str) -> UpstreamBody:
        body = EncodedForm(self.form, {"model": model})
        return UpstreamBody(
            content_type=body.content_type, get_content=body.iterate_body, length=body.length
        )


class TranscriptionRequest(_UploadRequest):
    """A request of ``POST /v1/audio/transcriptions``.

    Args:
        seconds: the duration of the audio as its file states it; None if it cannot be read.
    """

    operation: ClassVar[Operation] = Operation.TRANSCRIPTION
    path: ClassVar[str] = "/audio/transcriptions"

    def __init__(self, form: MultipartForm, seconds: float | None) -> None:
        super().__init__(form)
        [self._file] = _require_files(form, ("file",), max_count=1)
        if form.get("url") is not None:
            raise UnsupportedFeature(
                "url is not supported: send the audio in the field 'file'", field="url"
            )
        if self.model == _AUTO and form.get("model") is None:
            raise InvalidRequest("model: Field required", field="model")
        self._seconds = seconds

    @property
    def expected_usage(self) -> OperationUsage:
        size = self._file.size
        seconds = size / _ASSUMED_BYTES_PER_SECOND if self._seconds is None else self._seconds
        # No file can contain more speech than this, whatever its header states.
        bounded_seconds = min(seconds, size / _MIN_BYTES_PER_SECOND)
        return OperationUsage(quantity=_round_up(bounded_seconds), is_estimated=True)

    @property
    def max_usage(self) -> OperationUsage:
        size = self._file.size
        if self._seconds is None:
            seconds = size / _MIN_BYTES_PER_SECOND
        else:
            likely_seconds = max(self._seconds, size / _TYPICAL_BYTES_PER_SECOND)
            seconds = min(likely_seconds, size / _MIN_BYTES_PER_SECOND)
        quantity = _round_up(seconds)
        prompt_bytes = count_utf8_bytes(self.form.get("prompt") or "")
        token_usage = Usage(
            input_tokens=quantity * _MAX_TOKENS_PER_SECOND + prompt_bytes,
            output_tokens=quantity * _MAX_TOKENS_PER_SECOND,
        )
        return OperationUsage(quantity=quantity, tokens=token_usage)

    def accepts(self, media_type: str) -> bool:
        return media_type in (JSON_TYPE, EVENT_STREAM_TYPE) or media_type in _TEXT_TYPES

    def read_usage(self, data: Mapping[str, Any] | None) -> OperationUsage:
        token_usage = read_token_usage(data)
        usage = (data or {}).get("usage")
        candidates = [usage.get("seconds") if isinstance(usage, Mapping) else None]
        candidates.append((data or {}).get("duration"))
        for seconds in candidates:
            # OpenAI's older reference shows the number as a string.
            audio_seconds = _to_seconds(seconds)
            if audio_seconds:
                return OperationUsage(quantity=_round_up(audio_seconds), tokens=token_usage)
        return OperationUsage(
            quantity=self.expected_usage.quantity,
            tokens=token_usage,
            is_estimated=token_usage == Usage(),
        )

    def complete_response(self, raw: bytes, data: dict[str, Any], request_id: str) -> bytes:
        if not isinstance(data.get("text"), str):
            raise new_malformed_response_error()
        return raw


class TranslationRequest(TranscriptionRequest):
    """A request of ``POST /v1/audio/translations``, which transcribes speech as English text."""

    operation: ClassVar[Operation] = Operation.TRANSLATION
    path: ClassVar[str] = "/audio/translations"


class _ImageRequest(_UploadRequest):
    """Base of requests that create pictures from pictures."""

    def __init__(self, form: MultipartForm, picture_count: int) -> None:
        super().__init__(form)
        self._count, self._pictures = _parse_count(form), picture_count

    @property
    def expected_usage(self) -> OperationUsage:
        return OperationUsage(quantity=self._count)

    @property
    def max_usage(self) -> OperationUsage:
        prompt_bytes = count_utf8_bytes(self.form.get("prompt") or "")
        token_usage = Usage(
            input_tokens=_MAX_TOKENS_PER_IMAGE * self._pictures + prompt_bytes,
            output_tokens=_MAX_TOKENS_PER_IMAGE * self._count,
        )
        return OperationUsage(quantity=self._count, tokens=token_usage)

    def read_usage(self, data: Mapping[str, Any] | None) -> OperationUsage:
        pictures = (data or {}).get("data")
        # Refused pictures are missing in the response, and are not billed.
        count = len(pictures) if isinstance(pictures, list) and pictures else self._count
        return OperationUsage(quantity=count, tokens=read_token_usage(data))

    def complete_response(self, raw: bytes, data: dict[str, Any], request_id: str) -> bytes:
        return complete_images(raw, data)


class ImageEditRequest(_ImageRequest):
    """A request of ``POST /v1/images/edits`` that a back end answers, not a render template."""

    operation: ClassVar[Operation] = Operation.IMAGE_EDIT
    path: ClassVar[str] = "/images/edits"

    def __init__(self, form: MultipartForm) -> None:
        files = _require_files(form, ("image", "image[]"), max_count=16)
        if not form.get("prompt"):
            raise InvalidRequest("prompt: Field required", field="prompt")
        super().__init__(form, len(files) + len(form.find_files("mask")))

    def accepts(self, media_type: str) -> bool:
        return media_type in (JSON_TYPE, EVENT_STREAM_TYPE)


class ImageVariationRequest(_ImageRequest):
    """A request of ``POST /v1/images/variations``."""

    operation: ClassVar[Operation] = Operation.IMAGE_VARIATION
    path: ClassVar[str] = "/images/variations"

    def __init__(self, form: MultipartForm) -> None:
        super().__init__(form, len(_require_files(form, ("image",), max_count=1)))

    def accepts(self, media_type: str) -> bool:
        return media_type == JSON_TYPE


def _read_model(form: MultipartForm) -> str:
    model = form.get("model")
    if model is not None and not 0 < len(model) <= _MAX_NAME:
        raise InvalidRequest(f"model: must have 1 to {_MAX_NAME} characters", field="model")
    return model or _AUTO


def _require_files(
    form: MultipartForm, names: tuple[str, ...], *, max_count: int
) -> tuple[FormFile, ...]:
    """Return the files of the fields ``names``.

    Raises:
        InvalidRequest: there is no file, an empty file, or more than ``max_count`` files.
    """
    files, field = form.find_files(*names), names[0]
    if not files:
        raise InvalidRequest(
            f"{field}: must be sent as a file, in a form part with a filename", field=field
        )
    if len(files) > max_count:
        limit = "one file" if max_count == 1 else f"{max_count} files"
        raise InvalidRequest(f"{field}: send at most {limit}", field=field)
    if not all(file.size for file in files):
        raise InvalidRequest(f"{field}: must not be an empty file", field=field)
    return files


def _parse_count(form: MultipartForm) -> int:
    field_value = form.get("n")
    if field_value is None:
        return 1
    count = (
        int(field_value)
        if field_value.isascii() and field_value.isdecimal() and len(field_value) <= 3
        else 0
    )
    if not 1 <= count <= MAX_IMAGES:
        raise InvalidRequest(f"n: must be a number from 1 to {MAX_IMAGES}", field="n")
    return count


def _round_up(seconds: float) -> int:
    return max(1, -int(-seconds // 1))


def _to_seconds(value: Any) -> float | None:
    """Return the seconds that a back end reported; None if the value is not a usable number."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 < value < 1e7 else None
