"""The literal blocks of the documents: what a reader is told to type, and what he is told to see."""

from __future__ import annotations

from attrs import frozen
from docutils import nodes
from docutils.core import publish_doctree

from tests.test_docs import DOCUMENTS, ROOT

SETTINGS = {"report_level": 2, "halt_level": 2, "syntax_highlight": "none"}


@frozen
class Block:
    """One of them."""

    document: str  #: path from the root of the repository
    section: str   #: title of the innermost section
    text: str

    @property
    def lines(self) -> list[str]:
        """Its lines."""
        return self.text.splitlines()


def blocks(document: str, section: str | None = None) -> list[Block]:
    """All blocks of a document, or of one of its sections, in their order."""
    tree = publish_doctree((ROOT / document).read_text("utf-8"), document, settings_overrides=SETTINGS)
    found = [Block(document, _title(each), each.astext()) for each in tree.findall(nodes.literal_block)]
    return [each for each in found if section in (None, each.section)]


def all_blocks() -> list[Block]:
    """Those of all documents."""
    return [each for path in DOCUMENTS for each in blocks(path.relative_to(ROOT).as_posix())]


def _title(node: nodes.Node) -> str:
    while not isinstance(node, (nodes.section, nodes.document)):
        node = node.parent
    return node[0].astext()
