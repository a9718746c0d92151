"""Routemaster: an opinionated event bus over HTTP."""

__version__ = "0.1.0"
