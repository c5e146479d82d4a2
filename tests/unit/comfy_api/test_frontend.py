from __future__ import annotations

from pathlib import Path

import pytest

from moyin.comfy_api.frontend import (
    RENEWAL_PATH,
    FrontendFolders,
    add_renewal_script,
    build_security_policy,
    find_frontend,
    rebase_picture_urls,
    set_base_path,
)
from moyin.errors import StackError
from moyin.settings import Settings


def create_environment(folder: Path) -> tuple[Path, Path]:
    """Create a ComfyUI and a Python environment; return ComfyUI's folder and the packages' folder."""
    home, python = folder / "comfy", folder / "venv" / "bin" / "python"
    home.mkdir()
    (home / "main.py").touch()
    python.parent.mkdir(parents=True)
    python.touch(0o755)
    packages_folder = folder / "venv" / "lib" / "python3.11" / "site-packages"
    packages_folder.mkdir(parents=True)
    return home, packages_folder


def create_page(root: Path) -> Path:
    root.mkdir(parents=True)
    (root / "index.html").write_text("<html>")
    return root


def test_the_frontend_is_found_in_comfyuis_environment(tmp_path: Path) -> None:
    home, packages_folder = create_environment(tmp_path)
    settings = Settings(
        data=tmp_path, comfyui_home=home, comfyui_python=tmp_path / "venv" / "bin" / "python"
    )
    with pytest.raises(StackError, match="comfyui-frontend-package"):
        find_frontend(settings)
    root = create_page(packages_folder / "comfyui_frontend_package" / "static")
    folders = ["comfyui_workflow_templates_a/templates", "comfyui_workflow_templates_b/templates"]
    for name in (*folders, "comfyui_embedded_docs/docs"):
        (packages_folder / name).mkdir(parents=True)
    assert find_frontend(settings) == FrontendFolders(
        root=root,
        templates=tuple(packages_folder / name for name in folders),
        docs=(packages_folder / "comfyui_embedded_docs" / "docs",),
    )


def test_the_configured_frontend_needs_no_comfyui(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MOYIN_COMFYUI_HOME", raising=False)
    with pytest.raises(StackError):
        find_frontend(Settings(data=tmp_path))
    root = tmp_path / "static"
    with pytest.raises(StackError, match="has no index"):
        find_frontend(Settings(data=tmp_path, comfyui_frontend=root))
    create_page(root)
    assert find_frontend(Settings(data=tmp_path, comfyui_frontend=root)).root == root


def test_the_policy_allows_only_the_pages_own_scripts() -> None:
    index_html = '<script type="importmap">{}</script><script type="module" src="./x.js"></script>'
    policy = build_security_policy(index_html)
    # echo -n '{}' | openssl dgst -sha256 -binary | base64
    assert "'sha256-RBNvo1WzZ4oRRq0W9+hknpT7T8If536DEMBg9hyq/4o='" in policy
    assert policy.count("sha256-") == 1
    assert "'unsafe-inline'" not in policy.partition("script-src")[2].partition(";")[0]


def test_the_base_path_and_our_scripts_are_inserted_and_allowed() -> None:
    page = set_base_path("<html><head><title>x</title></head></html>", "/comfy/")
    assert page.startswith('<html><head><base href="/comfy/"><script>')
    assert page.endswith("<title>x</title></head></html>")
    assert '"/console/"' in page
    assert page.count("<script>") == build_security_policy(page).count("sha256-") == 2


def test_picture_urls_are_rebased_below_the_page(tmp_path: Path) -> None:
    assets = create_page(tmp_path / "static") / "assets"
    assets.mkdir()
    sources = {
        "a.js": 'e=`/assets/images/x/frame_${n}.png`,t="./assets/images/y.png",u=`/assets/${id}`',
        "b.css": r".bg-\[url\(\'\/assets\/images\/z\'\)\]{background:url(/assets/images/z.svg)}",
        "c.json": '{"src": "/assets/favicon.ico"}',
        "d.js": "class:`bg-[url('/assets/images/z.svg')]`",
    }
    for name, text in sources.items():
        (assets / name).write_text(text)
    (assets / "e.png").write_bytes(b'"/assets/images/')
    assert rebase_picture_urls(tmp_path / "static", "/comfy/") == {
        f"assets/{name}": sources[name].replace(old_prefix, f"{old_prefix[0]}/comfy{old_prefix[1:]}").encode()
        for name, old_prefix in (
            ("a.js", "`/assets/images/"), ("b.css", "(/assets/"), ("c.json", '"/assets/'),
        )
    }  # fmt: skip


def test_the_renewal_is_a_script_of_the_gateway_that_the_policy_allows() -> None:
    page = add_renewal_script(set_base_path("<html><head></head>", "/comfy/"))
    assert page.count(f'<script src="{RENEWAL_PATH}" type="module"></script>') == 1
    assert "script-src 'self'" in build_security_policy(page)
