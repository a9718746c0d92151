"""Fuzzing: what strangers send is read without an unexpected exception, and to one meaning only.

`targets` has one function for each parser, `messages` those for whole connections. The tests call them with
hypothesis (`tests/test_parsers.py`), `python -m fuzz` with atheris, which follows the code's branches.
"""
