"""Builds the documentation site from `docs/` and the pages at the top of the repository.

The Markdown sources are written for GitHub; this module makes the site's copy of them:

- Pages outside `docs/` get a path on the site (`PAGES`), and links are adjusted.
- Links to other files of the repository lead to a page that shows the file.
- Diagrams become pictures, because drawing them in the browser needs three megabytes of scripts.

Run it with `make docs`, in the environment of requirements-docs.lock. Only the functions that draw
import more than the standard library.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "docs" / "zensical.toml"
# Pages outside docs/ and their paths on the site.
PAGES = {
    "ARCHITECTURE.md": "architecture/overview.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "reporting.md",
    "clients/python/README.md": "python-client.md",
    "clients/typescript/README.md": "typescript-client.md",
}
# Titles of the pages that list folders.
FOLDERS = {"adr": "Decisions"}
_FENCE = re.compile(r"^(`{3,})(\w*)[^\n]*\n(.*?)^\1[ \t]*$", re.MULTILINE | re.DOTALL)
_INLINE_CODE = re.compile(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", re.DOTALL)
_LINK = re.compile(r"(\]\()([^()\s]+)(\))")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_LANGUAGES = {".json": "json", ".py": "python", ".toml": "toml", ".yaml": "yaml", ".yml": "yaml"}
_VIEW_BOX = re.compile(r'viewBox="[-\d.]+ [-\d.]+ ([\d.]+) [\d.]+"')
_ARTICLE = '<article class="md-content__inner'
Draw = Callable[[str, Path], None]


class SitePages:
    """Writes the site's copy of all pages below a folder."""

    def __init__(self, folder: Path, draw_diagram: Draw) -> None:
        self._folder = folder
        self._draw = draw_diagram

    def write(self) -> None:
        """Write all pages, the files that they link to, and the pictures."""
        for source in sorted((ROOT / "docs").rglob("*")):
            if source.is_dir() or source == CONFIG:
                continue
            if source.suffix == ".md":
                self._write_page(source)
            else:
                target_path = self._folder / source.relative_to(ROOT / "docs")
                target_path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target_path)
        for name in PAGES:
            self._write_page(ROOT / name)

    def _write_page(self, source: Path) -> None:
        page = find_site_path(source)
        assert page is not None, source
        markdown = source.read_text()
        markdown_parts: list[str] = []
        copied_until = 0
        for match in _FENCE.finditer(markdown):
            markdown_parts.append(
                self._rewrite_prose(markdown[copied_until : match.start()], source, page)
            )
            if match[2] == "mermaid":
                markdown_parts.append(
                    self._convert_diagram(match[3], markdown[: match.start()], page)
                )
            else:
                markdown_parts.append(match[0])
            copied_until = match.end()
        markdown_parts.append(self._rewrite_prose(markdown[copied_until:], source, page))
        self._write_text(page, "".join(markdown_parts))

    def _write_text(self, page: str, text: str) -> None:
        target_path = self._folder / page
        target_path.parent.mkdir(parents=True, exist_ok=True)
        target_path.write_text(text)

    def _rewrite_prose(self, prose: str, source: Path, page: str) -> str:
        """Return ``prose``, Markdown without code blocks, with links to pages of the site."""
        prose_parts: list[str] = []
        copied_until = 0
        for match in _INLINE_CODE.finditer(prose):
            # A code span may be the text of a link: what follows it starts with "](".
            prose_parts.append(
                self._rewrite_links(prose[copied_until : match.start()], source, page)
            )
            prose_parts.append(match[0])
            copied_until = match.end()
        prose_parts.append(self._rewrite_links(prose[copied_until:], source, page))
        return "".join(prose_parts)

    def _rewrite_links(self, text: str, source: Path, page: str) -> str:
        return _LINK.sub(
            lambda match: match[1] + self._find_target(match[2], source, page) + match[3], text
        )

    def _find_target(self, link: str, source: Path, page: str) -> str:
        name, hash_sign, anchor = link.partition("#")
        if not name or "://" in name or name.startswith("mailto:"):
            return link
        file = (source.parent / name).resolve()
        if (file / "README.md").is_file():
            file /= "README.md"
        if not file.is_relative_to(ROOT):
            raise SystemExit(f"{source}: {link} leads out of the repository; link to a URL instead")
        target = find_site_path(file)
        if target in FOLDERS:
            target = self._list_folder(file, target)
        elif target is None:
            target = self._show_file(file)
        return os.path.relpath(target, Path(page).parent) + hash_sign + anchor

    def _list_folder(self, folder: Path, path: str) -> str:
        """Write a page that lists the pages of a folder, and return the new page's path."""
        lines = [f"# {FOLDERS[path]}", ""]
        for file in sorted(folder.glob("*.md")):
            title = file.read_text().partition("\n")[0].removeprefix("# ")
            lines.append(f"- [{title}]({file.name})")
        page = f"{path}/index.md"
        self._write_text(page, "\n".join(lines) + "\n")
        return page

    def _show_file(self, file: Path) -> str:
        """Write a page that shows a file of the repository, and return the new page's path."""
        name = file.relative_to(ROOT).as_posix()
        page = f"files/{name}.md"
        language = _LANGUAGES.get(file.suffix, "text")
        code = f"``````{language}\n{file.read_text().rstrip()}\n``````\n"
        self._write_text(page, f"---\nsearch:\n  exclude: true\n---\n\n# {name}\n\n{code}")
        return page

    def _convert_diagram(self, diagram: str, text_before: str, page: str) -> str:
        """Draw a Mermaid diagram and return the Markdown that shows it.

        Args:
            text_before: the page's text before the diagram; its last heading becomes the title.
            page: the path of the page on the site.
        """
        headings = _HEADING.findall(text_before)
        title = headings[-1].replace("`", "") if headings else "Moyin"
        name = hashlib.sha256(diagram.encode()).hexdigest()[:16]
        picture = Path("diagrams") / f"{name}.svg"
        target_path = self._folder / picture
        target_path.parent.mkdir(parents=True, exist_ok=True)
        self._draw(diagram, target_path)
        path = os.path.relpath(picture, Path(page).parent)
        # The diagram's text has 16 pixels at full size, and stays readable at 0.6 of that.
        min_width = round(0.6 * _read_svg_width(target_path))
        return (
            f'[![Diagram: {title}]({path}){{ .diagram style="min-width: {min_width}px" }}]({path})'
        )


def find_site_path(source: Path) -> str | None:
    """Return the path that a page or picture has on the site, or None if it is not on the site."""
    name = source.relative_to(ROOT).as_posix()
    if name in PAGES:
        return PAGES[name]
    if not name.startswith("docs/"):
        return None
    path = name.removeprefix("docs/")
    return re.sub(r"(^|/)README\.md$", r"\1index.md", path)


def _read_svg_width(picture: Path) -> float:
    match = _VIEW_BOX.search(picture.read_text())
    if match is None:
        raise SystemExit(f"{picture}: the SVG must have a viewBox, which gives the diagram's width")
    return float(match[1])


def draw_with_mermaid(diagram: str, path: Path) -> None:
    """Draw a diagram as SVG with Mermaid, which mermaidx runs without a browser."""
    import mermaidx

    if re.search(r"[\u2e80-\uffff]", diagram):
        raise SystemExit(
            "mermaidx has no font to measure East Asian text; write this diagram in English: "
            f"{diagram[:80]}"
        )
    mermaidx.render(diagram, theme="neutral").save(str(path))


def mark_language(site: Path, language: str) -> None:
    """Set the language attribute on the site's pages in the folder named ``language``."""
    for page in (site / language).rglob("*.html"):
        html = page.read_text()
        if _ARTICLE not in html:
            raise SystemExit(
                f"{page} lacks {_ARTICLE!r}, which gets the language: adapt it to the theme"
            )
        page.write_text(html.replace(_ARTICLE, f'<article lang="{language}" ' + _ARTICLE[9:], 1))


def build_site(
    work_folder: Path, output_folder: Path, draw_diagram: Draw = draw_with_mermaid
) -> None:
    """Build the site in ``output_folder``, with ``work_folder`` for temporary files.

    A warning of the site generator raises an error.
    """
    shutil.rmtree(work_folder, ignore_errors=True)
    work_folder.mkdir(parents=True)
    SitePages(work_folder / "pages", draw_diagram).write()
    config = work_folder / CONFIG.name
    shutil.copyfile(CONFIG, config)
    subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--clean", "--strict", "-f", str(config)],
        check=True,
    )
    mark_language(work_folder / "site", "ja")
    shutil.rmtree(output_folder, ignore_errors=True)
    shutil.move(work_folder / "site", output_folder)


def main() -> None:
    """Build the site in the folder that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "docs-site", help="temporary files"
    )
    parser.add_argument(
        "--output", type=Path, default=ROOT / "site", help="folder of the finished site"
    )
    arguments = parser.parse_args()
    build_site(arguments.work, arguments.output)


if __name__ == "__main__":
    main()
