"""`python -m routemaster.cli`: the same as `routemaster-admin`."""

import sys

from routemaster.cli import main

sys.exit(main())
