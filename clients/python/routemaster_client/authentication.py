"""Who sent a batch: the uuid in HTTP Basic, and signatures by Standard Webhooks. Everything is compared in
constant time."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping, Sequence

from routemaster_client.errors import Invalid

TOLERANCE = 300  #: seconds that a signature may be old, or in the future


def has_uuid(authorization: str, uuids: Sequence[str]) -> bool:
    """Whether an Authorization header carries one of the uuids as its user name."""
    scheme, _, credentials = authorization.strip().partition(" ")
    if scheme.lower() != "basic":
        return False
    try:
        name = base64.b64decode(credentials.strip(), validate=True).partition(b":")[0]
    except (binascii.Error, ValueError):
        return False
    found = False
    for uuid in uuids:  # all of them: the time must not depend on which one it is
        found |= hmac.compare_digest(name, uuid.encode())
    return found


def signing_key(secret: str) -> bytes:
    """The key in a secret `whsec_…`; Invalid if it is none."""
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not key or not secret.startswith("whsec_"):
        raise Invalid("secret is invalid: expected whsec_ and Base64")
    return key


def signature(key: bytes, id: str, timestamp: str, body: bytes) -> str:
    """The signature of a request, as it stands in the header `webhook-signature`."""
    signed = f"{id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def is_signed(headers: Mapping[str, str], body: bytes, keys: Sequence[bytes], now: float) -> bool:
    """Whether a request carries a signature by one of the keys that is not too old."""
    id, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not id or not timestamp.isdecimal() or abs(now - int(timestamp[:15])) > TOLERANCE:
        return False
    given = headers.get("webhook-signature", "").encode().split()
    found = False
    for key in keys:
        expected = signature(key, id, timestamp, body).encode()
        for each in given[:10]:
            found |= hmac.compare_digest(each, expected)
    return found
