"""Print pip constraints with the lowest versions that the installed routemaster's requirements allow."""

import re
from importlib.metadata import requires

for requirement in requires("routemaster") or ():
    if "extra ==" not in requirement:
        name = re.match(r"[\w.-]+", requirement)[0]
        print(f"{name}=={re.search(r'>=([0-9.]+)', requirement)[1]}")
