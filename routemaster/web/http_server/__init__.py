"""An HTTP/1.1 server (RFC 9112) with limits in size and time."""
