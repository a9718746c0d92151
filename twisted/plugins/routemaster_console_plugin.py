"""Makes `twistd routemaster-console` known to Twisted."""

from twisted.application.service import ServiceMaker

routemaster_console = ServiceMaker(
    "Routemaster console", "routemaster.console.tap", "Pages that watch Routemaster buses.", "routemaster-console"
)
