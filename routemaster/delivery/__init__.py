"""Deliveries: from a subscriber's backlog to its callback."""
