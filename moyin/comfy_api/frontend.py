"""Where the files of ComfyUI's web frontend are: in ComfyUI's own environment, never in this tree.

The packages (GPL-3.0) are found by their folders and never imported.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from moyin.errors import StackError
from moyin.render.comfyui.install import locate
from moyin.settings import Settings

__all__ = ["Frontend", "at_home", "content_policy", "find_frontend", "rebased"]

_STATIC = "comfyui_frontend_package/static"
_TEMPLATES = "comfyui_workflow_templates*/templates"
_DOCS = "comfyui_embedded_docs/docs"
# Pictures for which the page's own files ask at the server's root, such as the tab's icon that shows
# progress. Behind an apostrophe it is the name of a style.
_PICTURE = re.compile(rb'(?<=["`(])/(?=assets/(?:images/|favicon\.ico))')
_ASKING = (".js", ".css", ".json")
_INLINE = re.compile(r"<script(?P<attributes>[^>]*)>(?P<text>.*?)</script>", re.DOTALL)
# The frontend compiles templates of its own and of extensions, which bring scripts and styles, and
# shows pictures of ComfyUI's template library; it looks up nodes in ComfyUI's registry.
_POLICY = (
    "default-src 'self'; "
    "script-src 'self' 'unsafe-eval' blob:{hashes}; "
    "style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob: https:; "
    "media-src 'self' data: blob: https:; "
    "font-src 'self' data:; "
    "connect-src 'self' data: blob: https://api.comfy.org https://*.comfy.org; "
    "worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
# Versions such as 1.32 take the page's own path for a view that they do not know when it is not
# the server's root: they are told that they are at home. Newer ones know by themselves.
_HOME = """<script>
(function settle() {
  const app = document.getElementById("vue-app")?.__vue_app__;
  const router = app?.config.globalProperties.$router;
  if (!router) return void setTimeout(settle, 20);
  if (!router.resolve(router.options.history.location).matched.length)
    router.replace("/" + location.search + location.hash);
})();
</script>"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Frontend:
    """Folders that lie over each other below the page.

    Attributes:
        root: of ``index.html``.
        templates, docs: what the page finds below ``templates/`` and ``docs/``.
    """

    root: Path
    templates: tuple[Path, ...] = ()
    docs: tuple[Path, ...] = ()


def find_frontend(settings: Settings) -> Frontend:
    """The frontend that the settings name, else the one beside ComfyUI; blocks.

    Raises:
        StackError: there is none.
    """
    places: list[Path] = []
    try:
        places = _packages(locate(settings).python)
    except StackError:
        if settings.comfyui_frontend is None:
            raise
    root = settings.comfyui_frontend or next(
        (place / _STATIC for place in places if (place / _STATIC).is_dir()), None
    )
    if root is None:
        raise StackError("ComfyUI's environment has no comfyui-frontend-package")
    if not (root / "index.html").is_file():
        raise StackError(f"{root} has no index.html")
    return Frontend(
        root=root,
        templates=tuple(sorted(found for place in places for found in place.glob(_TEMPLATES))),
        docs=tuple(found for place in places for found in place.glob(_DOCS)),
    )


def at_home(index: str, path: str) -> str:
    """The page as it works below ``path``: its addresses stay relative to that."""
    head, tag, rest = index.partition("<head>")
    return f'{head}{tag}<base href="{path}">{_HOME}{rest}'


def rebased(root: Path, path: str) -> dict[str, bytes]:
    """The page's files that ask for pictures at the server's root, by name, with the pictures' places
    below ``path`` instead; blocks."""
    found = {}
    for file in root.glob("assets/*"):
        content = file.read_bytes() if file.suffix in _ASKING else b""
        if _PICTURE.search(content):
            found[f"assets/{file.name}"] = _PICTURE.sub(path.encode(), content)
    return found


def content_policy(index: str) -> str:
    """The Content-Security-Policy under which the page works: of its inline scripts only those
    that it came with may run."""
    hashes = "".join(
        f" 'sha256-{base64.b64encode(hashlib.sha256(found['text'].encode()).digest()).decode()}'"
        for found in _INLINE.finditer(index)
        if "src=" not in found["attributes"]
    )
    return _POLICY.format(hashes=hashes)


def _packages(python: Path) -> list[Path]:
    """Where the packages of an interpreter lie; a virtual environment's link is not followed."""
    prefix = python.parent.parent
    return [
        *prefix.glob("lib/python3*/site-packages"),
        *prefix.glob("lib/python3*/dist-packages"),
    ]
