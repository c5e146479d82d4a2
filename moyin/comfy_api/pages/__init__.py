"""Renders the gateway's own HTML pages, such as the sign-in page; they work without JavaScript."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from importlib.resources import files
from string import Template

__all__ = [
    "RENEWAL_SCRIPT", "HtmlPage", "render_plain_page", "render_sign_in_page", "render_signed_in_page",
    "render_start_page", "render_waiting_page",
]  # fmt: skip

_TEMPLATE = Template(files(__package__).joinpath("sign_in.html").read_text())
_FORM = """{alert}<p>The farm's ComfyUI needs an API key of yours, or an access token.</p>
<form method="post" action="/comfy/session">
<label for="key">API key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus
 spellcheck="false" placeholder="moyin_…">
<button>Sign in</button>
</form>
<p>You have an account with a password? <a href="/console/">Open the console</a> and sign in there.</p>"""
_SIGNED_IN = """<p>You are signed in as <code>{name}</code>.</p>
<p><a href="/comfy/">Open ComfyUI</a></p>
<p><a href="/console/">Open the console</a></p>
<p role="alert" hidden>The session could not be ended just now. Try again in a moment.</p>
<form method="post" action="/comfy/session/end"><button>Sign out</button></form>"""
_START = """<p>Clients of ComfyUI's API can use this address with an API key.</p>
<p><a href="/comfy/">Open ComfyUI</a></p>
<p><a href="/console/">Open the console</a></p>
<p><a href="/docs">API documentation</a></p>"""
# Browsers omit the SameSite cookie after a link from another site, so this script requests the
# session again. If only the cookie has expired, for example while a laptop slept, the script renews
# the session. A key after # in the link is filled into the form; browsers do not send this part to
# servers.
_SCRIPT = """
const key = new URLSearchParams(location.hash.slice(1)).get("key");
if (key) {
  document.getElementById("key").value = key;
  history.replaceState(null, "", location.pathname);
} else if (!document.querySelector("[role=alert]")) {
  fetch("/comfy/session", {headers: {accept: "application/json"}})
    .then((answer) => answer.ok ? answer : fetch("/accounts/session/renew", {method: "POST"}))
    .then((answer) => { if (answer.ok) location.replace("/comfy/"); });
}
"""
_RELOAD_SCRIPT = "setTimeout(() => location.reload(), 3000);"
# Ends the session at the accounts app, which gets the cookie that renews it: the cookie of the access
# token expires in minutes, and without it the gateway would not know which session to end. While the
# accounts app does not respond, the cookies stay, so that the session can still be ended afterwards.
_SIGN_OUT_SCRIPT = """
const form = document.querySelector("form");
const alert = document.querySelector("[role=alert]");
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  alert.hidden = true;
  const answer = await fetch("/accounts/session/end", {method: "POST"}).catch(() => null);
  if (answer !== null && answer.status < 500) form.submit();
  else alert.hidden = false;
});
"""
# This script in ComfyUI's page renews the session of a signed-in person, because access tokens
# expire in minutes. It also renews when the page is shown again, because timers of a sleeping
# computer are late. It stops when the session has ended, and tries again after failures of network
# or server.
RENEWAL_SCRIPT = """
let timer = 0;
async function renew() {
  clearTimeout(timer);
  let seconds = 15;
  try {
    const answer = await fetch("/accounts/session/renew", {method: "POST"});
    if (answer.status === 401) return;
    if (answer.ok) seconds = Math.max(15, (await answer.json()).expires_in / 2);
  } catch (error) {
    console.info("the session could not be renewed; trying again:", error);
  }
  clearTimeout(timer);
  timer = setTimeout(renew, seconds * 1000);
}
document.addEventListener("visibilitychange", () => { if (!document.hidden) renew(); });
renew();
"""


class HtmlPage:
    """An HTML page with its response headers, such as its Content-Security-Policy."""

    def __init__(self, title: str, body: str, script: str = "") -> None:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        self.html = _TEMPLATE.substitute(title=escape(title), body=body, script=script)
        self.headers = {
            "cache-control": "no-store",
            # Without referrers, forms would have the origin `null`. At addresses without TLS, where
            # browsers send no Sec-Fetch-Site, the gateway would take it for another site's.
            "referrer-policy": "same-origin",
            "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; "
            f"img-src data:; connect-src 'self'; script-src 'sha256-{digest}'; "
            "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        }


def render_sign_in_page(error: str = "") -> HtmlPage:
    """Return the sign-in page, which shows ``error`` if a sign-in has failed."""
    alert = f'<p role="alert">{escape(error)}</p>' if error else ""
    return HtmlPage("Sign in", _FORM.format(alert=alert), _SCRIPT)


def render_signed_in_page(name: str) -> HtmlPage:
    """Return the page that shows the signed-in user and a sign-out button."""
    return HtmlPage("Signed in", _SIGNED_IN.format(name=escape(name)), _SIGN_OUT_SCRIPT)


def render_start_page() -> HtmlPage:
    """Return the page at ``/`` for ComfyUI clients, which check that ``/`` has one."""
    return HtmlPage("Render farm", _START)


def render_waiting_page() -> HtmlPage:
    """Return the page that is shown while no ComfyUI has started, and that reloads itself."""
    text = "No ComfyUI of the farm has started yet. This page reloads every few seconds."
    link = '<p><a href="/console/">Open the console</a></p>'
    return HtmlPage("The farm is starting", f"<p>{text}</p>{link}", _RELOAD_SCRIPT)


def render_plain_page(title: str, text: str) -> HtmlPage:
    """Return a page with a title and one paragraph of text."""
    return HtmlPage(title, f"<p>{escape(text)}</p>")
