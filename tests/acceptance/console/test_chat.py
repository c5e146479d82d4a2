"""Tests the console's chat: streaming, stopping, editing, comparing, tools and pictures."""

from __future__ import annotations

import base64
import json
import urllib.request
from typing import Any

from playwright.sync_api import FilePayload, Locator, Page, Route, expect

from tests.acceptance.console.browser import ConsoleBrowser
from tests.acceptance.text_gateway import CLAUDE, LLAMA, PNG, SCRIPTED, TextGateway
from tests.stack import RunningStack
from tests.waiting import eventually_blocking

_LOCAL = "smollm2-135m"
_COPY_PICTURE = """
async (base64) => {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const picture = new Blob([bytes], {type: "image/png"});
  await navigator.clipboard.write([new ClipboardItem({"image/png": picture})]);
}
"""


def test_an_answer_is_streamed_explained_rated_and_regenerated(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    page = console.sign_in_with_key(gateway.api_key).page
    page.get_by_role("link", name="Chat").click()
    page.get_by_text("kept in the memory of this page only").wait_for()
    console.check_accessibility()
    _choose_option(page, "Model", _LOCAL)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System prompt").fill("You answer in few words.")
    page.get_by_label("Most tokens of an answer").fill("40")
    page.get_by_label("Temperature").fill("0")
    console.check_accessibility()
    page.get_by_role("button", name="Settings").click()
    bodies: list[dict[str, Any]] = []

    def record_body(route: Route) -> None:
        bodies.append(route.request.post_data_json)
        route.continue_()

    page.route("**/v1/chat/completions", record_body)
    _send_prompt(page, "Name a colour of the sea.")
    answer = _wait_for_answer(page)
    page.unroute("**/v1/chat/completions", record_body)
    assert [body["messages"] for body in bodies] == [
        [
            {"role": "system", "content": "You answer in few words."},
            {"role": "user", "content": "Name a colour of the sea."},
        ]
    ]
    answer.get_by_text("Why: free").wait_for()
    call = _get_call(gateway, _read_request_id(answer))
    assert (call["model"], call["backend"]) == (_LOCAL, "local")
    tokens = f"{call['input_tokens']} + {call['output_tokens']} tokens"
    assert tokens in answer.inner_text()
    assert "tokens/s" in answer.inner_text()
    console.check_accessibility()
    console.screenshot("chat")

    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    assert _click_copy_button(page, "Copy the prompt") == "Name a colour of the sea."
    copied_text = " ".join(_click_copy_button(page, "Copy").split())
    assert copied_text != ""
    assert copied_text in " ".join(answer.inner_text().split())

    answer.get_by_role("button", name="Good answer").click()
    page.get_by_text("the router takes it into account").wait_for()
    expect(answer.get_by_role("button", name="Bad answer")).to_be_disabled()
    assert _read_scores(gateway)[call["request_id"]] == 1

    page.get_by_role("button", name="Ask again").click()
    eventually_blocking(lambda: _read_request_id(_wait_for_answer(page)) != call["request_id"])
    answer = _wait_for_answer(page)
    answer.get_by_role("button", name="Bad answer").click()
    expect(answer.get_by_role("button", name="Good answer")).to_be_disabled()
    console.check_accessibility()
    bad_answer_id = _read_request_id(answer)
    assert eventually_blocking(lambda: bad_answer_id in _read_scores(gateway))
    assert _read_scores(gateway)[bad_answer_id] == 0
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


def test_an_answer_can_be_stopped_and_a_servers_error_is_shown(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    page = console.sign_in_with_key(gateway.api_key).open(f"/chat?model={_LOCAL}").page
    _send_prompt(page, "Tell a very long story about a dragon, with many chapters.")
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
    _send_prompt(page, "How is the weather?")
    page.get_by_role("alert").get_by_text("unsupported_feature").wait_for()
    console.check_accessibility()
    console.check_clean("400")


def test_two_models_answer_one_prompt_side_by_side(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    page = console.sign_in_with_key(gateway.api_key).open("/chat?model=auto").page
    page.get_by_role("button", name="Compare two models").click()
    _choose_option(page, "Second model", _LOCAL)
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
    console.screenshot("chat-compare", also_in="ja")

    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Most tokens of an answer").fill("")
    page.get_by_role("button", name="Settings").click()
    _send_prompt(page, "Tell a very long story about a dragon, with many chapters.")
    regions = page.get_by_role("region", name="Conversation with")
    page.get_by_role("button", name="Stop").click()
    for number in range(2):
        regions.nth(number).get_by_text("Stopped", exact=True).wait_for()
    page.get_by_role("button", name="Send", exact=True).wait_for()
    console.check_accessibility()
    page.get_by_role("button", name="Remove this model").first.click()
    assert page.get_by_role("region", name="Conversation with").count() == 1
    console.choose_language("ja")
    page.get_by_role("heading", name="チャット").wait_for()
    console.check_accessibility()


def test_tools_schemas_and_pictures_are_sent_to_the_model(
    console: ConsoleBrowser, gateway: RunningStack, text_gateway: TextGateway
) -> None:
    """Use a models app with the scripted model, since the farm's own model supports no tools."""
    page = console.sign_in_with_key(gateway.api_key).page
    bodies: list[dict[str, Any]] = []

    def forward_to_text_gateway(route: Route) -> None:
        if route.request.method == "POST":
            bodies.append(route.request.post_data_json)
        headers = {
            "content-type": "application/json", "authorization": f"Bearer {text_gateway.api_key}"
        }  # fmt: skip
        url = route.request.url.replace(gateway.url, text_gateway.url)
        route.fulfill(response=route.fetch(url=url, headers=headers, timeout=120_000))

    page.route("**/v1/**", forward_to_text_gateway)
    console.open(f"/chat?model={LLAMA}")
    page.get_by_role("button", name="This model takes no pictures").wait_for()
    _choose_option(page, "Model", SCRIPTED)
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Insert an example: Tools (JSON)").click()
    page.get_by_role("button", name="Settings").click()
    picture = FilePayload(name="dot.png", mimeType="image/png", buffer=PNG)
    page.locator("input[type=file]").set_input_files(picture)
    page.get_by_role("button", name="Remove the picture").click()
    page.get_by_role("img", name="Picture of the prompt").wait_for(state="detached")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate(_COPY_PICTURE, base64.b64encode(PNG).decode())
    page.get_by_label("Prompt", exact=True).press("Control+V")
    page.get_by_role("img", name="Picture of the prompt").wait_for()
    console.check_accessibility()
    _send_prompt(page, "How is the weather in this picture?")
    page.get_by_label("Result of get_weather").fill('{"sky": "clear"}')
    console.check_accessibility()
    console.screenshot("chat-tools")
    page.get_by_role("button", name="Send the results").click()
    page.get_by_text("It is sunny").wait_for()
    [user_message, *_] = bodies[0]["messages"]
    assert len(user_message["content"]) == 2
    assert user_message["content"][1]["image_url"]["url"].startswith("data:image/png;base64,")
    call_message, result_message = bodies[1]["messages"][-2:]
    assert call_message["tool_calls"][0]["function"]["name"] == "get_weather"
    assert result_message == {
        "role": "tool", "tool_call_id": call_message["tool_calls"][0]["id"], "content": '{"sky": "clear"}'
    }  # fmt: skip

    page.get_by_role("button", name="Settings").click()
    page.get_by_role("textbox", name="Tools (JSON)").fill("")
    page.get_by_role("button", name="Insert an example: Schema of the answer (JSON)").click()
    page.get_by_role("button", name="Settings").click()
    _send_prompt(page, "Describe the sky.")
    answer = _wait_for_answer(page)
    assert bodies[-1]["response_format"]["json_schema"]["schema"]["required"] == ["title", "tags"]
    assert '"title"' in answer.inner_text()

    # A model that has a price.
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("textbox", name="Schema of the answer (JSON)").fill("")
    page.get_by_label("Most tokens of an answer").fill("16")
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("dialog").get_by_role("button", name="Clear").click()
    _choose_option(page, "Model", CLAUDE)
    _send_prompt(page, "Name a colour of the sea.")
    answer = _wait_for_answer(page)
    cost_usd = float(_get_call(text_gateway, _read_request_id(answer))["cost_usd"])
    assert cost_usd > 0
    shown_cost = page.evaluate(
        """(cost) => new Intl.NumberFormat("en", {
          style: "currency", currency: "USD", maximumSignificantDigits: 3, minimumSignificantDigits: 1,
        }).format(cost)""",
        cost_usd,
    )
    assert f"{shown_cost} · " in answer.inner_text()
    console.check_accessibility()
    page.unroute_all(behavior="ignoreErrors")


def _choose_option(page: Page, label: str, option: str) -> None:
    page.get_by_role("combobox", name=label).or_(page.get_by_role("textbox", name=label)).click()
    page.get_by_role("option", name=option, exact=True).click()


def _send_prompt(page: Page, prompt: str) -> None:
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


def _click_copy_button(page: Page, button: str) -> str:
    """Click on a button that copies a text, and return what the clipboard has then."""
    page.get_by_role("button", name=button, exact=True).click()
    copied_button = page.get_by_role("button", name="Copied", exact=True)
    copied_button.wait_for()
    clipboard_text = str(page.evaluate("navigator.clipboard.readText()"))
    copied_button.wait_for(state="detached")
    return clipboard_text


def _read_scores(gateway: RunningStack) -> dict[str, float]:
    """Return the ratings of answers by the ids of their requests."""
    signals = _get_json(gateway, "/v1/quality/export")["signals"]
    return {signal["request_id"]: signal["score"] for signal in signals}


def _get_call(gateway: RunningStack | TextGateway, request_id: str) -> dict[str, Any]:
    """Return the call's ledger entry, which is written within a second after the call."""

    def find_call() -> dict[str, Any] | None:
        calls = _get_json(gateway, "/v1/requests")["requests"]
        return next((call for call in calls if call["request_id"] == request_id), None)

    ledger_entry: dict[str, Any] = eventually_blocking(find_call)
    return ledger_entry


def _get_json(gateway: RunningStack | TextGateway, path: str) -> Any:
    headers = {"authorization": f"Bearer {gateway.api_key}"}
    with urllib.request.urlopen(
        urllib.request.Request(gateway.url + path, headers=headers)
    ) as response:
        return json.load(response)
