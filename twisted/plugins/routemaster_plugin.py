"""Makes `twistd routemaster` known to Twisted."""

from twisted.application.service import ServiceMaker

routemaster = ServiceMaker(
    "Routemaster", "routemaster.tap", "An opinionated event bus over HTTP.", "routemaster"
)
