"""Who may call an endpoint: decided from a request's headers alone, before its body is read."""

from __future__ import annotations

from twisted.web.http_headers import Headers

from routemaster.errors import StoreUnavailable
from routemaster.web.auth import Authenticator, Principal, Role
from routemaster.web.responses import Unauthorized

Who = frozenset[Role]

CLIENTS = Who({Role.CLIENT})
ROOTS = Who({Role.ROOT})
OWNERS = CLIENTS | ROOTS                #: a client for what is its own, root for all
MONITORS = ROOTS | {Role.MONITOR}
READERS = OWNERS | MONITORS
NOBODY = Who()                          #: no credentials are needed

_REQUIRED = {
    CLIENTS: "a client's token is required: root and monitors neither publish nor subscribe",
    ROOTS: "the root key is required",
    OWNERS: "a client's token or the root key is required",
    MONITORS: "the root key or a monitor key is required",
}


class Access:
    """Checks credentials."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    def principal(self, headers: Headers, who: Who) -> Principal:
        """The principal of a request; raises Unauthorized, or StoreUnavailable as `identify` does."""
        values = headers.getRawHeaders(b"authorization", ())
        principal = self._authenticator.identify(values[0]) if len(values) == 1 else None
        if principal is None:
            raise Unauthorized("authentication required: send your token as the HTTP Basic user name")
        if principal.role not in who:
            raise Unauthorized(_REQUIRED[who])
        if principal.role is Role.CLIENT and Role.MONITOR not in who and not self._authenticator.complete:
            raise StoreUnavailable("client cannot be determined: tokens have not been read from Redis yet")
        return principal
