"""The limits of the HTTP server in size and time."""

from __future__ import annotations

from collections.abc import Callable

from attrs import field, frozen

from routemaster.web.http_server.body_reader import BodyBudget
from routemaster.web.http_server.places import Places


@frozen
class Limits:
    """Times in seconds, sizes in bytes."""

    body_limit: Callable[[bytes, bytes], int] = lambda method, target: 65536  #: of a request's body
    bodies: BodyBudget = field(factory=lambda: BodyBudget(64 * 1024 * 1024))  #: of all sites with these limits
    places: Places = field(factory=Places)  #: for connections, of all sites with these limits
    fresh: float = 10.0             #: from connecting to the first byte of a request, TLS handshake included
    head: float = 10.0              #: from the first byte to the end of the headers
    body: float = 30.0              #: from the end of the headers to the end of the body
    handling: float = 60.0          #: for the handler to answer
    response: float = 30.0          #: for the client to read what has been written
    idle: float = 60.0              #: between two requests
    closing: float = 5.0            #: for the client to close after the server did
