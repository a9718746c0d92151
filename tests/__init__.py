"""The tests: each states one rule in its docstring; run them with `trial tests`."""

from hypothesis import HealthCheck, settings

# on a machine that others keep busy a slow example says nothing
settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")
