"""The way out: from a subscriber's backlog to its callback."""
