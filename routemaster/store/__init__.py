"""What the bus keeps, and the adapters that keep it."""
