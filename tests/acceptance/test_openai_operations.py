"""Tests rerankings, and all calls of OpenAI's SDK except chats; responses are validated strictly."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types import ImageEditStreamEvent, ImagesResponse, ModerationCreateResponse
from openai.types.audio import Transcription, TranscriptionStreamEvent, TranscriptionVerbose
from pydantic import TypeAdapter

from tests.acceptance.openai_models import check_response
from tests.acceptance.scripted_operations import PICTURE, SPEECH, TRANSCRIPT
from tests.acceptance.text_gateway import PNG, TextGateway


@pytest.fixture
def client(text_gateway: TextGateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=text_gateway.openai_url,
        api_key=text_gateway.api_key,
        max_retries=0,
        http_client=openai.DefaultHttpxClient(event_hooks={"response": [check_response]}),
        _strict_response_validation=True,
    ) as client:
        yield client


@pytest.fixture
def http(text_gateway: TextGateway) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {text_gateway.api_key}"}
    with httpx.Client(base_url=text_gateway.openai_url, headers=headers) as http:
        yield http


def make_wav(seconds: int) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as wave_writer:
        wave_writer.setparams((1, 2, 8000, 0, "NONE", ""))
        wave_writer.writeframes(bytes(2 * 8000 * seconds))
    return file.getvalue()


def test_texts_are_moderated_without_a_named_model(client: openai.OpenAI) -> None:
    moderation = client.moderations.create(input=["I kill time.", "Hello."])
    assert [result.flagged for result in moderation.results] == [True, True]
    input_types = moderation.results[0].category_applied_input_types
    assert input_types is not None and input_types.violence == ["text"]
    _check_strictly(ModerationCreateResponse, moderation)


def test_a_picture_is_moderated(client: openai.OpenAI) -> None:
    picture: Any = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}}
    moderation = client.moderations.create(model="omni-moderation-latest", input=[picture])
    assert len(moderation.results) == 1


def test_a_picture_by_url_is_not_fetched(client: openai.OpenAI) -> None:
    picture: Any = {"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}
    with pytest.raises(openai.BadRequestError) as exc_info:
        client.moderations.create(model="omni-moderation-latest", input=[picture])
    assert (exc_info.value.code, exc_info.value.param) == (
        "unsupported_feature",
        "input.0.image_url.url",
    )


def test_speech_is_streamed(client: openai.OpenAI) -> None:
    with client.audio.speech.with_streaming_response.create(
        model="tts", voice="alloy", input="It is sunny."
    ) as response:
        assert response.headers["content-type"] == "audio/mpeg"
        assert response.headers["x-moyin-cost-usd"] == "0.00018"
        assert b"".join(response.iter_bytes()) == b"".join(SPEECH)


def test_speech_is_sent_as_events(http: httpx.Client) -> None:
    body = {"model": "tts", "voice": "alloy", "input": "Hi.", "stream_format": "sse"}
    response = http.post("/audio/speech", json=body)
    assert response.headers["content-type"] == "text/event-stream"
    first_event, second_event, cost_comment, _ = response.text.split("\n\n")
    assert '"speech.audio.delta"' in first_event and '"speech.audio.done"' in second_event
    assert cost_comment == ": x-moyin-cost-usd=0.000045"


def test_a_transcription_is_billed_by_the_usage_that_the_back_end_reports(
    client: openai.OpenAI,
) -> None:
    raw_response = client.audio.transcriptions.with_raw_response.create(
        model="whisper", file=("hello.wav", make_wav(2)), prompt="Weather.", temperature=0
    )
    transcription = raw_response.parse()
    assert isinstance(transcription, Transcription) and transcription.text == TRANSCRIPT
    assert raw_response.headers["x-moyin-cost-usd"] == "0.0009"  # nine seconds
    assert "x-moyin-estimated" not in raw_response.headers
    _check_strictly(Transcription, transcription)


def test_transcription_has_timestamps(client: openai.OpenAI) -> None:
    raw_response = client.audio.transcriptions.with_raw_response.create(
        model="whisper",
        file=("hello.wav", make_wav(2)),
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    )
    transcription = raw_response.parse()
    assert isinstance(transcription, TranscriptionVerbose) and transcription.duration == 7.2
    assert raw_response.headers["x-moyin-cost-usd"] == "0.0008"  # eight seconds


def test_a_transcription_as_text_costs_the_length_of_its_file(client: openai.OpenAI) -> None:
    raw_response = client.audio.transcriptions.with_raw_response.create(
        model="whisper", file=("hello.wav", make_wav(60)), response_format="text"
    )
    assert raw_response.text.strip() == TRANSCRIPT
    assert raw_response.headers["content-type"].startswith("text/plain")
    assert raw_response.headers["x-moyin-cost-usd"] == "0.006"
    assert raw_response.headers["x-moyin-estimated"] == "true"


def test_a_transcription_is_streamed(client: openai.OpenAI) -> None:
    events = client.audio.transcriptions.create(
        model="gpt-4o-transcribe", file=("hello.wav", make_wav(2)), stream=True
    )
    received_events = list(events)
    assert [event.type for event in received_events] == [
        "transcript.text.delta",
        "transcript.text.done",
    ]
    for event in received_events:
        _check_strictly(TranscriptionStreamEvent, event)


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_audio_is_translated(client: openai.OpenAI) -> None:
    answer = client.audio.translations.create(model="whisper", file=("hallo.wav", make_wav(2)))
    assert answer.text == TRANSCRIPT


def test_pictures_are_edited(client: openai.OpenAI) -> None:
    raw_response = client.images.with_raw_response.edit(
        model="pictures",
        image=[("a.png", PNG, "image/png"), ("b.png", PNG, "image/png")],
        mask=("mask.png", PNG, "image/png"),
        prompt="Sun.",
        n=2,
    )
    edit = raw_response.parse()
    assert [image.b64_json for image in edit.data or ()] == [PICTURE, PICTURE]
    # Two pictures, 30 tokens read and 5 written.
    assert raw_response.headers["x-moyin-cost-usd"] == "0.08035"
    _check_strictly(ImagesResponse, edit)


def test_an_edit_is_streamed(client: openai.OpenAI) -> None:
    events = client.images.edit(
        model="pictures", image=("a.png", PNG, "image/png"), prompt="Sun.", stream=True,
        partial_images=1,
    )  # fmt: skip
    received_events = list(events)
    assert [event.type for event in received_events] == [
        "image_edit.partial_image",
        "image_edit.completed",
    ]
    for event in received_events:
        _check_strictly(ImageEditStreamEvent, event)


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_variations_get_the_date_that_the_back_end_left_out(client: openai.OpenAI) -> None:
    variation = client.images.create_variation(
        model="pictures", image=("a.png", PNG, "image/png"), n=3
    )
    assert len(variation.data or ()) == 3
    assert variation.created > 1_700_000_000


@pytest.mark.parametrize("path", ["rerank", "reranking"])
def test_reranking_answers_in_jina_format(http: httpx.Client, path: str) -> None:
    documents = ["It rains", {"text": "the sun is bright"}, "cats"]
    body = {"model": "rerank", "query": "the bright sun", "documents": documents, "top_n": 2}
    response = http.post(path, json={**body, "return_documents": True})
    assert response.status_code == 200, response.text
    assert response.headers["x-moyin-cost-usd"] == "0.002"
    ranking = response.json()
    assert ranking["results"][0] == {
        "index": 1,
        "relevance_score": 1.0,
        "document": {"text": "the sun is bright"},
    }
    assert len(ranking["results"]) == 2
    assert ranking["usage"]["total_tokens"] == 40 and ranking["id"]


def test_reranking_answers_in_cohere_format(http: httpx.Client) -> None:
    answer = http.post("rerank", json={"model": "cohere", "query": "a", "documents": ["a"]})
    assert answer.headers["x-moyin-cost-usd"] == "0.006"  # three searches
    assert answer.json()["meta"]["billed_units"]["search_units"] == 3


def test_the_model_list_shows_the_abilities_of_each_model(client: openai.OpenAI) -> None:
    whisper: Any = client.models.retrieve("whisper")
    assert whisper.abilities == ["transcription", "translation"]
    chat: Any = client.models.retrieve("scripted")
    assert chat.abilities == ["chat"]


def test_a_model_without_the_ability_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as exc_info:
        client.audio.speech.create(model="whisper", voice="alloy", input="Hi.")
    assert (exc_info.value.code, exc_info.value.param) == ("unsupported_feature", "model")
    with pytest.raises(openai.NotFoundError) as not_found_error:
        client.audio.speech.create(model="nothing", voice="alloy", input="Hi.")
    assert not_found_error.value.code == "model_not_found"
    message: Any = {"role": "user", "content": "Hi."}
    with pytest.raises(openai.BadRequestError) as chat_error:
        client.chat.completions.create(model="whisper", messages=[message])
    assert chat_error.value.code == "unsupported_feature"


def test_a_refusal_of_the_back_end_has_its_reason(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as exc_info:
        client.audio.transcriptions.create(
            model="whisper", file=("a.wav", make_wav(1)), extra_body={"response_format": "midi"}
        )
    assert exc_info.value.code == "backend_rejected"


def _check_strictly(expected_type: Any, sdk_object: Any) -> None:
    """Assert that an object built by the SDK has every member that ``expected_type`` requires."""
    TypeAdapter(expected_type).validate_python(sdk_object.to_dict(), strict=True)
