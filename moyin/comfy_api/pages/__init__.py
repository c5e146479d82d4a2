"""The few pages of the door itself. Plain HTML that also works without scripts."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from importlib.resources import files
from string import Template

__all__ = ["Page", "plain_page", "sign_in_page", "signed_in_page", "waiting_page"]

_TEMPLATE = Template(files(__package__).joinpath("sign_in.html").read_text())
_FORM = """{told}<p>The farm's ComfyUI needs an API key of yours, or an access token.</p>
<form method="post" action="/comfy/session">
<label for="key">API key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus
 spellcheck="false" placeholder="moyin_…">
<button>Sign in</button>
</form>"""
_SIGNED_IN = """<p>You are signed in as <code>{who}</code>.</p>
<p><a href="/comfy/">Open ComfyUI</a></p>
<form method="post" action="/comfy/session/end"><button>Sign out</button></form>"""
# A link from elsewhere comes without the cookie, which is for the door's own pages: ask again from
# here. A link may also bring a key behind its #, which no server sees: it is filled in, not sent.
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
_AGAIN = "setTimeout(() => location.reload(), 3000);"


class Page:
    """A page with the headers that keep it harmless."""

    def __init__(self, title: str, body: str, script: str = "") -> None:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        self.html = _TEMPLATE.substitute(title=escape(title), body=body, script=script)
        self.headers = {
            "cache-control": "no-store",
            "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; "
            f"img-src data:; connect-src 'self'; script-src 'sha256-{digest}'; "
            "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        }


def sign_in_page(told: str = "") -> Page:
    """Asks for a key. ``told``: what was wrong with the one before."""
    alert = f'<p role="alert">{escape(told)}</p>' if told else ""
    return Page("Sign in", _FORM.format(told=alert), _SCRIPT)


def signed_in_page(who: str) -> Page:
    """Says who is signed in, and lets them out."""
    return Page("Signed in", _SIGNED_IN.format(who=escape(who)))


def waiting_page() -> Page:
    """Comes back by itself until the farm knows its nodes."""
    text = "No ComfyUI of the farm has come up yet. This page looks again every few seconds."
    return Page("The farm is starting", f"<p>{text}</p>", _AGAIN)


def plain_page(title: str, text: str) -> Page:
    """One sentence."""
    return Page(title, f"<p>{escape(text)}</p>")
