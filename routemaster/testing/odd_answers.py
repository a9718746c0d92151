"""Answers that are not exact HTTP: a table of bytes by name, and which of them a browser reads."""

from __future__ import annotations

CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"

#: What a server sends for each request.
ANSWERS: dict[str, bytes] = {
    "switches": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
    "says_close": b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 2\r\n\r\nok",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nokay\r\n0\r\n\r\n",
    "bare_lf": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "some_bare_lf": b"HTTP/1.1 200 OK\r\nContent-Length: 2\n\r\nok",
    "folded": b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length:\r\n\t2\r\n\r\nok",
    "space_before_colon": b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
    "length_and_chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n" + CHUNKED + b"2\r\nok\r\n0\r\n\r\n",
    "chunks_in_1_0": b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n" + CHUNKED + b"2\r\nok\r\n0\r\n\r\n",
    "spaces_around_size": b"HTTP/1.1 200 OK\r\n" + CHUNKED + b" 2 \r\nok\r\n0  \r\n\r\n",
    "lf_in_chunks": b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"2\nok\n0\n\n",
    "lf_in_trailers": b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"2\r\nok\r\n0\r\nX: y\n\r\n",
    "no_end_of_trailers": b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"2\r\nok\r\n0\r\n",
    "body_behind_204": b"HTTP/1.1 204 No Content\r\n\r\nok",
    "announced_behind_204": b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n",
    "identity_coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 2\r\n\r\nok",
    "two_codings": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "unknown_coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "empty_length": b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nok",
    "length_no_number": b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nok",
    "same_lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2, 2\r\n\r\nok",
    "version_in_lower_case": b"http/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "version_2": b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "spaces_in_status_line": b"HTTP/1.1  200 OK\r\nContent-Length: 2\r\n\r\nok",
    "empty_line_before_status": b"\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "empty_lines_after_interim": b"HTTP/1.1 100 Continue\r\n\r\n\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
    "line_without_colon": b"HTTP/1.1 200 OK\r\nnonsense\r\nContent-Length: 2\r\n\r\nok",
    "long_head": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 60_000 + b"\r\nContent-Length: 2\r\n\r\nok",
    "empty_lines": b"\r\n" * 40_000,
    "old_version": b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
}

#: Those whose connection the server closes then.
CLOSING = ("no_end_of_trailers", "unknown_coding", "empty_length", "length_no_number")

#: Behaviours whose answer a browser reads although it is not exact; their connection is not used again.
LENIENT = (
    "bare_lf", "some_bare_lf", "folded", "space_before_colon", "length_and_chunks", "chunks_in_1_0",
    "spaces_around_size", "lf_in_chunks", "lf_in_trailers", "no_end_of_trailers", "body_behind_204",
    "announced_behind_204", "late_body_behind_204", "closed_at_end", "closed_without_notify",
    "identity_coding", "two_codings", "unknown_coding", "empty_length", "length_no_number", "same_lengths",
    "version_in_lower_case", "version_2", "spaces_in_status_line", "empty_line_before_status",
    "empty_lines_after_interim", "line_without_colon",
)  # fmt: skip

#: Answers that no browser reads, or that have two meanings: none may count as an acknowledgement.
MALFORMED: dict[str, bytes] = {
    "underscore": b"HTTP/1.1 2_00 OK\r\nContent-Length: 0\r\n\r\n",
    "plus": b"HTTP/1.1 +200 OK\r\nContent-Length: 0\r\n\r\n",
    "zero": b"HTTP/1.1 0200 OK\r\nContent-Length: 0\r\n\r\n",
    "shoutcast": b"ICY/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "CR in value": b"HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 1\r\n\r\nx",
    "chunk size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\nx\r\n0\r\n\r\n",
    "mail": b"220 mail.example.com ESMTP\r\n",
    "ssh": b"SSH-2.0-OpenSSH\r\n",
}
