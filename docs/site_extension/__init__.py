"""The Sphinx extension of the site.

- `pages`: which pages there are, from the links in `index.rst`; links between files of the repository.
- `sections`: a directive that takes sections of a file above `docs`.
- `configuration`, `http_api`, `metrics`, `commands`, `python_api`: directives that take what the code knows.
"""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx

from site_extension import commands, configuration, http_api, metrics, pages, python_api, sections


def setup(app: Sphinx) -> dict[str, Any]:
    """Register all parts."""
    for part in (pages, sections, configuration, http_api, metrics, commands, python_api):
        part.setup(app)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
