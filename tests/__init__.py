"""The tests: each states one rule in its docstring; run them with `trial tests`."""
