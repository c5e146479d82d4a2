"""Finds the packages of ComfyUI's web frontend, and adapts its page to the gateway.

The packages (GPL-3.0) are found by their folders in ComfyUI's environment, and never imported.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from moyin.errors import StackError
from moyin.render.comfyui.install import find_comfyui
from moyin.settings import Settings

RENEWAL_PATH = "/comfy/session/renew.js"
_STATIC = "comfyui_frontend_package/static"
_TEMPLATES = "comfyui_workflow_templates*/templates"
_DOCS = "comfyui_embedded_docs/docs"
# URLs of pictures that the page's files load from the server's root, such as the tab's icon. Text
# after an apostrophe is excluded, because there it is the name of a style.
_PICTURE_URL = re.compile(rb'(?<=["`(])/(?=assets/(?:images/|favicon\.ico))')
_TEXT_SUFFIXES = (".js", ".css", ".json")
_INLINE_SCRIPT = re.compile(r"<script(?P<attributes>[^>]*)>(?P<text>.*?)</script>", re.DOTALL)
# The frontend compiles templates of its own and of extensions, which needs `unsafe-eval`. It shows
# pictures of ComfyUI's template library, and searches for nodes in ComfyUI's registry.
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
# Versions such as 1.32 treat the path `/comfy/` as an unknown view, so this script makes their
# router show the start view. Newer versions do not need the script.
_START_VIEW_SCRIPT = """<script>
(function settle() {
  const app = document.getElementById("vue-app")?.__vue_app__;
  const router = app?.config.globalProperties.$router;
  if (!router) return void setTimeout(settle, 20);
  if (!router.resolve(router.options.history.location).matched.length)
    router.replace("/" + location.search + location.hash);
})();
</script>"""
# Adds the way back to the page's menu, in the console's language, by the interface that the frontend
# has for extensions. The frontend asks before it leaves a graph that is not saved.
_CONSOLE_LINK_SCRIPT = """<script>
(function link() {
  const app = window.app;
  if (!app?.extensionManager) return void setTimeout(link, 50);
  const language = localStorage.getItem("moyin.language") ?? navigator.language;
  app.registerExtension({
    name: "moyin.console",
    commands: [{
      id: "moyin.console.open",
      icon: "pi pi-home",
      label: language.startsWith("ja") ? "コンソールを開く" : "Open the console",
      function: () => location.assign("/console/"),
    }],
    menuCommands: [{path: ["Moyin"], commands: ["moyin.console.open"]}],
  });
})();
</script>"""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontendFolders:
    """The folders of ComfyUI's frontend; if several have a file, the first one serves it.

    Attributes:
        root: the folder of ``index.html``.
        templates, docs: the folders that are served below ``templates/`` and ``docs/``.
    """

    root: Path
    templates: tuple[Path, ...] = ()
    docs: tuple[Path, ...] = ()


def find_frontend(settings: Settings) -> FrontendFolders:
    """Find the frontend in the configured folder or in ComfyUI's environment; a blocking call.

    Raises:
        StackError: no frontend is installed.
    """
    package_folders: list[Path] = []
    try:
        package_folders = _list_package_folders(find_comfyui(settings).python)
    except StackError:
        if settings.comfyui_frontend is None:
            raise
    root = settings.comfyui_frontend or next(
        (folder / _STATIC for folder in package_folders if (folder / _STATIC).is_dir()), None
    )
    if root is None:
        raise StackError(
            "ComfyUI's environment has no comfyui-frontend-package: run `moyin comfyui install`"
        )
    if not (root / "index.html").is_file():
        raise StackError(
            f"the folder of ComfyUI's frontend, {root}, has no index.html: set "
            f"MOYIN_COMFYUI_FRONTEND to another folder, or run `moyin comfyui install`"
        )
    return FrontendFolders(
        root=root,
        templates=tuple(
            sorted(path for folder in package_folders for path in folder.glob(_TEMPLATES))
        ),
        docs=tuple(path for folder in package_folders for path in folder.glob(_DOCS)),
    )


def set_base_path(index_html: str, path: str) -> str:
    """Return the page with the gateway's scripts, and ``path`` as the base of relative URLs."""
    text_before, tag, text_after = index_html.partition("<head>")
    scripts = f"{_START_VIEW_SCRIPT}{_CONSOLE_LINK_SCRIPT}"
    return f'{text_before}{tag}<base href="{path}">{scripts}{text_after}'


def add_renewal_script(page: str) -> str:
    """Return ``page`` with the script that renews the session of a person who is signed in."""
    return page.replace("<head>", f'<head><script src="{RENEWAL_PATH}" type="module"></script>', 1)


def rebase_picture_urls(root: Path, path: str) -> dict[str, bytes]:
    """Return the frontend's files that load pictures from ``/``, changed to load from ``path``.

    The keys are the files' paths below ``root``, the values their new content.
    """
    rebased_files = {}
    for file in root.glob("assets/*"):
        content = file.read_bytes() if file.suffix in _TEXT_SUFFIXES else b""
        if _PICTURE_URL.search(content):
            rebased_files[f"assets/{file.name}"] = _PICTURE_URL.sub(path.encode(), content)
    return rebased_files


def build_security_policy(index_html: str) -> str:
    """Return the page's Content-Security-Policy, which allows its inline scripts."""
    hashes = "".join(
        f" 'sha256-{base64.b64encode(hashlib.sha256(script['text'].encode()).digest()).decode()}'"
        for script in _INLINE_SCRIPT.finditer(index_html)
        if "src=" not in script["attributes"]
    )
    return _POLICY.format(hashes=hashes)


def _list_package_folders(python: Path) -> list[Path]:
    """Return the existing package folders of the environment whose interpreter is ``python``."""
    prefix = python.parent.parent
    return [*prefix.glob("lib/python3*/site-packages"), *prefix.glob("lib/python3*/dist-packages")]
