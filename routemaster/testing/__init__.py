"""Peers to test against: friendly, slow, broken and hostile ones. Public code, needs the extra `test`."""
