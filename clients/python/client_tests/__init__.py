"""Tests of the client; `trial client_tests` runs them."""
