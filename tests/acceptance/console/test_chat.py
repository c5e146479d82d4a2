"""Tests the console's chat: streaming, stopping, editing, comparing, tools and pictures."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

from playwright.sync_api import FilePayload, Locator, Page, Route

from tests.acceptance.console.browser import ConsoleBrowser
from tests.acceptance.text_gateway import LLAMA, PNG, SCRIPTED, TextGateway
from tests.stack import RunningStack
from tests.waiting import eventually_blocking

_LOCAL = "smollm2-135m"


def test_an_answer_is_streamed_explained_rated_and_regenerated(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    page = console.sign_in_with_key(gateway.api_key).page
    page.get_by_role("link", name="Chat").click()
    page.get_by_text("kept in the memory of this page only").wait_for()
    console.check_accessibility()
    _choose(page, "Model", _LOCAL)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System prompt").fill("You answer in few words.")
    page.get_by_label("Most tokens of an answer").fill("40")
    page.get_by_label("Temperature").fill("0")
    console.check_accessibility()
    page.get_by_role("button", name="Settings").click()
    _send(page, "Name a colour of the sea.")
    answer = _wait_for_answer(page)
    answer.get_by_text("Why: free").wait_for()
    call = _get_call(gateway, _read_request_id(answer))
    assert (call["model"], call["backend"]) == (_LOCAL, "local")
    tokens = f"{call['input_tokens']} + {call['output_tokens']} tokens"
    assert tokens in answer.inner_text()
    assert "tokens/s" in answer.inner_text()
    console.check_accessibility()
    console.screenshot("chat")

    answer.get_by_role("button", name="Good answer").click()
    page.get_by_text("the router takes it into account").wait_for()
    signals = _request(gateway, "/v1/quality/export")["signals"]
    assert call["request_id"] in [signal["request_id"] for signal in signals]

    page.get_by_role("button", name="Ask again").click()
    eventually_blocking(lambda: _read_request_id(_wait_for_answer(page)) != call["request_id"])
    page.get_by_role("button", name="Edit and send again").click()
    page.get_by_label("Prompt", exact=True).first.fill("Name a colour of grass.")
    page.get_by_role("button", name="Send again", exact=True).click()
    page.get_by_role("article", name="You").get_by_text("colour of grass").wait_for()
    _wait_for_answer(page)
    assert page.get_by_text("colour of the sea").count() == 0

    page.get_by_role("button", name="Clear").click()
    page.get_by_role("dialog").get_by_role("button", name="Clear").click()
    page.get_by_role("heading", name="Chat").wait_for()
    eventually_blocking(lambda: page.get_by_role("article").count() == 0)


def test_an_answer_is_stopped_and_an_error_is_in_the_servers_words(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    page = console.sign_in_with_key(gateway.api_key).open(f"/chat?model={_LOCAL}").page
    _send(page, "Tell a very long story about a dragon, with many chapters.")
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped").wait_for()
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("textbox", name="Tools (JSON)").fill("{")
    page.get_by_text("must be a JSON list of tools").wait_for()
    page.get_by_label("Prompt", exact=True).last.fill("Hello")
    assert page.get_by_role("button", name="Send", exact=True).is_disabled()
    page.get_by_role("textbox", name="Tools (JSON)").fill("")
    page.get_by_role("button", name="Insert an example: Tools (JSON)").click()
    page.get_by_role("button", name="Settings").click()
    _send(page, "How is the weather?")
    page.get_by_role("alert").get_by_text("unsupported_feature").wait_for()
    console.check_accessibility()
    console.check_clean("400")


def test_two_models_answer_one_prompt_side_by_side(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    page = console.sign_in_with_key(gateway.api_key).open("/chat?model=auto").page
    page.get_by_role("button", name="Compare two models").click()
    _choose(page, "Second model", _LOCAL)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Most tokens of an answer").fill("32")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Prompt", exact=True).fill("What is a render farm?")
    page.get_by_role("button", name="Who would answer?").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text(f"Would answer: local · {_LOCAL}").nth(1).wait_for()
    assert dialog.get_by_role("table", name="Candidates").count() == 2
    console.check_accessibility()
    page.keyboard.press("Escape")
    page.get_by_label("Prompt", exact=True).press("Enter")
    for model in ("auto", _LOCAL):
        pane = page.get_by_role("region", name=f"Conversation with {model}")
        pane.get_by_text("Request:").wait_for()
        request_id = _read_request_id(pane.get_by_role("article").last)
        assert _get_call(gateway, request_id)["requested_model"] == model
    console.check_accessibility()
    console.screenshot("chat-compare", also="ja")
    page.get_by_role("button", name="Remove this model").first.click()
    assert page.get_by_role("region", name="Conversation with").count() == 1
    console.choose_language("ja")
    page.get_by_role("heading", name="チャット").wait_for()
    console.check_accessibility()


def test_tools_schemas_and_pictures(
    console: ConsoleBrowser, gateway: RunningStack, text_gateway: TextGateway
) -> None:
    """Use a models app with the scripted model, since the farm's own model supports no tools."""
    page = console.sign_in_with_key(gateway.api_key).page
    bodies: list[dict[str, Any]] = []

    def forward(route: Route) -> None:
        if route.request.method == "POST":
            bodies.append(route.request.post_data_json)
        headers = {
            "content-type": "application/json", "authorization": f"Bearer {text_gateway.api_key}"
        }  # fmt: skip
        url = route.request.url.replace(gateway.url, text_gateway.url)
        route.fulfill(response=route.fetch(url=url, headers=headers, timeout=120_000))

    page.route("**/v1/**", forward)
    console.open(f"/chat?model={LLAMA}")
    page.get_by_role("button", name="This model takes no pictures").wait_for()
    _choose(page, "Model", SCRIPTED)
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Insert an example: Tools (JSON)").click()
    page.get_by_role("button", name="Settings").click()
    picture = FilePayload(name="dot.png", mimeType="image/png", buffer=PNG)
    page.locator("input[type=file]").set_input_files(picture)
    page.get_by_role("button", name="Remove the picture").wait_for()
    _send(page, "How is the weather in this picture?")
    page.get_by_label("Result of get_weather").fill('{"sky": "clear"}')
    console.check_accessibility()
    console.screenshot("chat-tools")
    page.get_by_role("button", name="Send the results").click()
    page.get_by_text("It is sunny").wait_for()
    [question, *_] = bodies[0]["messages"]
    assert question["content"][1]["image_url"]["url"].startswith("data:image/png;base64,")
    call, result = bodies[1]["messages"][-2:]
    assert call["tool_calls"][0]["function"]["name"] == "get_weather"
    assert result == {
        "role": "tool", "tool_call_id": call["tool_calls"][0]["id"], "content": '{"sky": "clear"}'
    }  # fmt: skip

    page.get_by_role("button", name="Settings").click()
    page.get_by_role("textbox", name="Tools (JSON)").fill("")
    page.get_by_role("button", name="Insert an example: Schema of the answer (JSON)").click()
    page.get_by_role("button", name="Settings").click()
    _send(page, "Describe the sky.")
    answer = _wait_for_answer(page)
    assert bodies[-1]["response_format"]["json_schema"]["schema"]["required"] == ["title", "tags"]
    assert '"title"' in answer.inner_text()
    page.unroute_all(behavior="ignoreErrors")


def _choose(page: Page, label: str, option: str) -> None:
    page.get_by_role("combobox", name=label).or_(page.get_by_role("textbox", name=label)).click()
    page.get_by_role("option", name=option, exact=True).click()


def _send(page: Page, prompt: str) -> None:
    page.get_by_label("Prompt", exact=True).last.fill(prompt)
    page.get_by_role("button", name="Send", exact=True).click()


def _wait_for_answer(page: Page) -> Locator:
    """Wait until the last answer is complete, and return it."""
    answer = page.get_by_role("article").last
    answer.get_by_text("Request:").wait_for()
    page.get_by_role("button", name="Send", exact=True).wait_for()
    return answer


def _read_request_id(answer: Locator) -> str:
    return str(answer.get_by_text("Request:").locator("code").inner_text())


def _get_call(gateway: RunningStack, request_id: str) -> dict[str, Any]:
    """Return the call's ledger entry, which is written within a second after the call."""

    def find() -> dict[str, Any] | None:
        calls = _request(gateway, "/v1/requests")["requests"]
        return next((call for call in calls if call["request_id"] == request_id), None)

    results: dict[str, Any] = eventually_blocking(find)
    return results


def _request(gateway: RunningStack, path: str) -> Any:
    headers = {"authorization": f"Bearer {gateway.api_key}"}
    with urllib.request.urlopen(
        urllib.request.Request(gateway.url + path, headers=headers)
    ) as response:
        return json.load(response)
