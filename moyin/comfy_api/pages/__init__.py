"""Holds the gateway's own HTML pages, such as the sign-in page; they also work without scripts."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from importlib.resources import files
from string import Template

__all__ = ["Page", "plain_page", "sign_in_page", "signed_in_page", "waiting_page"]

_TEMPLATE = Template(files(__package__).joinpath("sign_in.html").read_text())
_FORM = """{alert}<p>The farm's ComfyUI needs an API key of yours, or an access token.</p>
<form method="post" action="/comfy/session">
<label for="key">API key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus
 spellcheck="false" placeholder="moyin_…">
<button>Sign in</button>
</form>"""
_SIGNED_IN = """<p>You are signed in as <code>{name}</code>.</p>
<p><a href="/comfy/">Open ComfyUI</a></p>
<form method="post" action="/comfy/session/end"><button>Sign out</button></form>"""
# A link from another site comes without the SameSite cookie, so this script asks again. A link may
# also carry a key after its #, which no server sees: the key is filled in, not sent.
_SCRIPT = """
const key = new URLSearchParams(location.hash.slice(1)).get("key");
if (key) {
  document.getElementById("key").value = key;
  history.replaceState(null, "", location.pathname);
} else if (!document.querySelector("[role=alert]")) {
  fetch("/comfy/session", {headers: {accept: "application/json"}})
    .then((answer) => { if (answer.ok) location.replace("/comfy/"); });
}
"""
_RELOAD_SCRIPT = "setTimeout(() => location.reload(), 3000);"


class Page:
    """Holds the HTML of a page and its headers, which restrict what the page may do."""

    def __init__(self, title: str, body: str, script: str = "") -> None:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        self.html = _TEMPLATE.substitute(title=escape(title), body=body, script=script)
        self.headers = {
            "cache-control": "no-store",
            "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; "
            f"img-src data:; connect-src 'self'; script-src 'sha256-{digest}'; "
            "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        }


def sign_in_page(error: str = "") -> Page:
    """Return the page that asks for a key; ``error`` says what was wrong with the previous key."""
    alert = f'<p role="alert">{escape(error)}</p>' if error else ""
    return Page("Sign in", _FORM.format(alert=alert), _SCRIPT)


def signed_in_page(name: str) -> Page:
    """Return the page that names the signed-in user and offers to sign out."""
    return Page("Signed in", _SIGNED_IN.format(name=escape(name)))


def waiting_page() -> Page:
    """Return the page that reloads itself until the farm's nodes are known."""
    text = "No ComfyUI of the farm has started yet. This page reloads every few seconds."
    return Page("The farm is starting", f"<p>{text}</p>", _RELOAD_SCRIPT)


def plain_page(title: str, text: str) -> Page:
    """Return a page with one paragraph of text."""
    return Page(title, f"<p>{escape(text)}</p>")
