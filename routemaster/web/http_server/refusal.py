"""The one form of every error answer: a status and `{"error": "<message>"}`."""

from __future__ import annotations

import json


class Refused(Exception):
    """The server refuses a request with this answer.

    Args:
        status: the HTTP status.
        message: one sentence for the client; `str(error)` returns it.
        headers: header fields of the answer besides Content-Type.
        fields: members of the JSON object besides `error`.
    """

    endpoint = ""  #: name of the endpoint that the request was for, if it is known

    def __init__(self, status: int, message: str, *headers: tuple[bytes, bytes], **fields: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = (b"Content-Type", b"application/json"), *headers
        self.body = json.dumps({"error": message, **fields}, ensure_ascii=False, separators=(",", ":")).encode()
