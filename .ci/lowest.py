"""Print pip constraints with the lowest versions that the installed distributions' requirements allow."""

import re
from importlib.metadata import requires

for requirement in [*(requires("routemaster") or ()), *(requires("routemaster-client") or ())]:
    if "extra ==" not in requirement:
        name = re.match(r"[\w.-]+", requirement)[0]
        print(f"{name}=={re.search(r'>=([0-9.]+)', requirement)[1]}")
