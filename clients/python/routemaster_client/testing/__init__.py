"""For tests of applications that use the bus: a fake one in the process, a real one where the server is installed.

`fake_bus` needs nothing; `case` has a mixin for unittest, `pytest_plugin` the fixtures `fake_bus` and `real_bus`,
which pytest finds by itself.
"""
