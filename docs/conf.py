"""The site: `sphinx-build -W --keep-going -n docs OUT`, with the extra `docs`.

Each text exists once. Pages that are read in the repository too (`*.rst` in docs,
README and others above it) are taken as they are; what the code knows is taken
from the code. `site_extension` does both.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

from routemaster import __version__  # noqa: E402

project = "Routemaster"
author = "Routemaster contributors"
copyright = "Routemaster contributors, MIT licence"
version = release = __version__

extensions = ["site_extension"]
root_doc = "index"
nitpicky = True
suppress_warnings: list[str] = []
highlight_language = "none"
smartquotes = False  # quotes in prose may be those of code

html_theme = "furo"
html_title = f"Routemaster {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
