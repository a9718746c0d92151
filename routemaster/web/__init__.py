"""The way in: the HTTPS endpoints of contract section 2."""
