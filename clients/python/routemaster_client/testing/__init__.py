"""For tests of applications that use the bus."""
