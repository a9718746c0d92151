"""`rtm`, the command line of the bus for its clients; needs the extra `cli` (click, rich, PyYAML).

click parses, and completes in bash, zsh and fish; rich colours and draws bars, on terminals alone.
"""
