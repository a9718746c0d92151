"""`rtm`, the command line of the bus for its clients; needs the extra `cli` (click, rich, PyYAML).

click parses, and completes in bash, zsh and fish; rich colours and draws bars, on terminals alone.
"""

from __future__ import annotations

import sys


def start() -> None:
    """The program; without the extra, it says what to install."""
    try:
        from routemaster_client.cli.main import main
    except ModuleNotFoundError as error:
        sys.exit(f"rtm needs {error.name}: pip install 'routemaster-client[cli]'")
    main()
