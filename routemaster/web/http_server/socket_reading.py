"""Reads a connection's socket when the server wants to, though its reading is paused."""

from __future__ import annotations

from typing import Any

from routemaster.web.http_server.unsent import socket_of

AT_LEAST = 17 * 1024  #: bytes read at once, however small the connection's share: a record of TLS


def read_now(transport: Any) -> None:
    """Read what has come; an error is found again by the reactor when reading is resumed.

    What is no socket of Twisted's is not read.
    """
    connection = socket_of(transport)
    if getattr(connection, "connected", False) and hasattr(connection, "doRead"):
        share = connection.bufferSize
        connection.bufferSize = max(share, AT_LEAST)
        try:
            connection.doRead()
        finally:
            connection.bufferSize = share
