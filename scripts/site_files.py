"""The hook of `mkdocs.yml`.

Files of the repository that pages link to, such as ../examples/count_objects.py, become part of the site, so that a
link leads to the same file in the repository and on the site. And no page may load anything from elsewhere.
"""

import logging
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
log = logging.getLogger("mkdocs.hooks.site_files")
ICON = ROOT / "src" / "sotr" / "serving" / "page" / "icon.svg"
SHIM = '<script src="https://unpkg.com/iframe-worker/shim"></script>'
"""What the theme's plugin `offline` loads from elsewhere."""
WORKER = f"<script>\n{(ROOT / 'scripts' / 'file_worker.js').read_text(encoding='utf-8')}</script>"
HYPHENED = re.compile(r"[^\s<>&;]*[-./][^\s<>&;]*")
"""Flags, names and paths, which browsers would break in the middle."""
ON_SITE = {"src/sotr/weights/nuclei/README.md": "nuclei.md"}
"""Files with another place on the site; a README would become the index of its section."""
OUTSIDE = re.compile(r"(?<=\]\()\.\./([^)#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the icon, and what pages right in docs/ link to outside of it; MkDocs itself finds what is not there."""
    outside = {
        target: ROOT / target
        for page in Path(config.docs_dir).glob("*.md")
        for target in OUTSIDE.findall(page.read_text(encoding="utf-8"))
    }
    for target, path in {**outside, "icon.svg": ICON}.items():
        if path.is_file():
            files.append(
                File.generated(
                    config, ON_SITE.get(target, target), abs_src_path=str(path), inclusion=InclusionLevel.NOT_IN_NAV
                )
            )
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """On the site these files lie beside the pages, not above them."""
    return (
        OUTSIDE.sub(lambda found: ON_SITE.get(found[1], found[1]), markdown)
        if "/" not in page.file.src_uri
        else markdown
    )


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Keep flags and names in code whole; see site.css."""
    return re.sub(
        r"<code>([^<]*)</code>",
        lambda found: f"<code>{HYPHENED.sub(_whole, found[1])}</code>",
        html,
    )


def _whole(name: re.Match[str]) -> str:
    return f'<span class="whole">{name[0]}</span>' if len(name[0]) <= 30 else name[0]


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Make the search work on files; warn, which ends a strict build, of what a browser would fetch elsewhere."""
    output = output.replace(SHIM, WORKER)
    for tag in re.findall(r"<(?:script|img|iframe|source|video|link)\b[^>]*>", output):
        address = re.search(r"\s(?:src|href)=\"?((?:https?:)?//[^\s\">]+)", tag)
        if address and 'rel="canonical"' not in tag:
            log.warning("%s loads something from elsewhere: %s", page.file.src_uri, address[1])
    return output


def on_post_template(output_content: str, template_name: str, config: MkDocsConfig) -> str:
    """The same for pages without a file of their own, such as 404.html."""
    return output_content.replace(SHIM, WORKER)
