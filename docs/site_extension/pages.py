"""Pages and the links between them.

The pages are plain reStructuredText that GitHub shows too, so that they link to each
other by path, and not by roles of Sphinx. Here a path becomes a link to the page
that has that file, or a download if no page has it. A path that does not exist,
and a section that a page does not have, are warnings.

`index.rst` is such a page as well: under each of its titles it links to the pages of
that part, in their order. The navigation is made from these links; a page in
`docs` that it does not name comes last in the part `ELSEWHERE`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging

DOCS = Path(__file__).resolve().parent.parent
ROOT = DOCS.parent
ELSEWHERE = "How-to"
#: pages for files above `docs`
FILES = {
    "README.rst": "index", "clients/python/README.rst": "reference/python", "CHANGES.rst": "project/changes",
    "CONTRIBUTING.rst": "project/contributing", "SECURITY.rst": "project/security_policy",
    "clients/python": "reference/python", "docs": "index",
}  # fmt: skip

logger = logging.getLogger(__name__)


def page_of(path: Path) -> str | None:
    """The page that has a file of the repository; None if there is none."""
    name = path.relative_to(ROOT).as_posix()
    if name in FILES:
        return FILES[name]
    if path.suffix == ".rst" and path.is_relative_to(DOCS):
        return path.relative_to(DOCS).with_suffix("").as_posix()
    return None


def _source(node: nodes.Node, otherwise: Path) -> Path:
    """The file in which a node was written."""
    while node is not None:
        source = getattr(node, "source", None)
        if source and Path(source).is_file():
            return Path(source).resolve()
        node = node.parent
    return otherwise


def read_links(app: Sphinx, document: nodes.document) -> None:
    """Find out what the relative links of a page mean."""
    here = Path(app.env.doc2path(app.env.docname))
    for reference in list(document.findall(nodes.reference)):
        address = urlsplit(reference.get("refuri", ""))
        if address.scheme or address.netloc or not address.path:
            continue
        # of the file where it was written; or of the page, if that gives a name of the file's another meaning
        places = [(place.parent / address.path).resolve() for place in (_source(reference, here), here)]
        target = next((place for place in places if place.exists()), None)
        if target is None:
            logger.warning("link to a file that does not exist: %s", address.path, location=reference)
            continue
        page = page_of(target)
        if page is not None:
            reference["page"], reference["section"] = page, address.fragment
            continue
        if target.is_dir():
            reference.replace_self(nodes.literal("", reference.astext()))
            continue
        given = f"/../{target.relative_to(ROOT).as_posix()}"
        download = addnodes.download_reference(
            "", "", *reference.children, reftarget=given, refdoc=app.env.docname
        )
        reference.replace_self(download)


def resolve_links(app: Sphinx, document: nodes.document, docname: str) -> None:
    """Turn them into addresses, when all pages have been read."""
    for reference in document.findall(nodes.reference):
        if "page" not in reference:
            continue
        page, section = reference["page"], reference["section"]
        if page not in app.env.found_docs:
            logger.warning("link to a page that does not exist: %s", page, location=reference)
            continue
        if section and section not in app.env.get_doctree(page).ids:
            logger.warning("link to a section that %s does not have: %s", page, section, location=reference)
        uri = app.builder.get_relative_uri(docname, page)
        reference["refuri"] = f"{uri}#{section}" if section else uri
        reference["internal"] = True


def navigation(app: Sphinx, document: nodes.document) -> None:
    """Add tables of contents to the index, one for each of its sections."""
    if app.env.docname != app.config.root_doc:
        return
    parts = {section[0].astext(): _pages(section) for section in document.findall(nodes.section)}
    named = {page for pages in parts.values() for page in pages}
    others = sorted({path.stem for path in DOCS.glob("*.rst")} - named - {app.config.root_doc})
    for caption, pages in parts.items():
        pages += others if caption == ELSEWHERE else []
        if pages:
            document.append(_contents(app.env.docname, caption, pages))


def _pages(section: nodes.section) -> list[str]:
    found = [reference["page"] for reference in section.findall(nodes.reference)
             if "page" in reference and not reference["section"]]  # fmt: skip
    return (
        [page for page in dict.fromkeys(found) if page != "index"]
        if isinstance(section.parent, nodes.section)
        else []
    )


def _contents(docname: str, caption: str, pages: list[str]) -> nodes.compound:
    contents = addnodes.toctree(
        "", entries=[(None, page) for page in pages], includefiles=list(pages), parent=docname, caption=caption,
        rawcaption=caption, maxdepth=2, hidden=True, glob=False, includehidden=False, numbered=0, titlesonly=False,
    )  # fmt: skip
    contents.source, contents.line = str(DOCS / f"{docname}.rst"), 1
    return nodes.compound("", contents, classes=["toctree-wrapper"])


def setup(app: Sphinx) -> dict[str, Any]:
    """Before Sphinx's own collectors, which have priority 500."""
    app.connect("doctree-read", read_links, priority=100)
    app.connect("doctree-read", navigation, priority=200)
    app.connect("doctree-resolved", resolve_links)
    return {}
