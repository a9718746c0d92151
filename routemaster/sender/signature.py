"""Signs deliveries by Standard Webhooks (https://www.standardwebhooks.com), version v1: HMAC-SHA256. Pure.

The message's ID follows from the subscriber and the body: every attempt at the
same batch has the same ID, whichever worker makes it, and batches of two
subscribers with one endpoint have different ones.
"""

from __future__ import annotations

import hmac
from base64 import b64decode, b64encode
from hashlib import sha256

from routemaster.model import Signing

PREFIX = "whsec_"


def message_id(subscriber: str, body: bytes) -> bytes:
    """The ID of a message to a subscriber, given by its public name."""
    digest = sha256(subscriber.encode() + b"\n")
    digest.update(body)
    return b"msg_" + digest.hexdigest()[:32].encode()


def signature_headers(signing: Signing, body: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """The headers of a signed request, with one signature for each secret."""
    message, at = message_id(signing.subscriber, body), b"%d" % signing.at
    signatures = []
    for secret in signing.secrets:
        digest = hmac.new(b64decode(secret.removeprefix(PREFIX)), b"%b.%b." % (message, at), sha256)
        digest.update(body)  # on its own: no copy of the body
        signatures.append(b"v1," + b64encode(digest.digest()))
    return (
        (b"webhook-id", message), (b"webhook-timestamp", at), (b"webhook-signature", b" ".join(signatures)),
    )  # fmt: skip


def masked_forms(signing: Signing) -> tuple[str, ...]:
    """The secrets as an answer may repeat them: without prefix and padding, as they are and as PHP writes JSON."""
    texts = [secret.removeprefix(PREFIX).rstrip("=") for secret in signing.secrets]
    return (*texts, *(text.replace("/", r"\/") for text in texts if "/" in text))
