"""A hook of `mkdocs.yml`: files of the repository that pages link to, such as ../examples/count_objects.py, become part
of the site. So a link leads to the same file in the repository and on the site."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
OUTSIDE = re.compile(r"(?<=\]\()\.\./([^)#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what pages right in docs/ link to outside of it; folders and what is not there are left to MkDocs' checks."""
    outside = {
        target
        for page in Path(config.docs_dir).glob("*.md")
        for target in OUTSIDE.findall(page.read_text(encoding="utf-8"))
    }
    for target in sorted(outside):
        if (ROOT / target).is_file():
            file = File.generated(config, target, abs_src_path=str(ROOT / target), inclusion=InclusionLevel.NOT_IN_NAV)
            files.append(file)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """On the site these files lie beside the pages, not above them."""
    return OUTSIDE.sub(r"\1", markdown) if "/" not in page.file.src_uri else markdown
