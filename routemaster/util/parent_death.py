"""The start of a program for `python -c` in a child process: it ends when its parent ends."""

#: Takes the process ID of the parent from the arguments. On Linux the kernel sends SIGTERM when the parent dies
#: (prctl 1: PR_SET_PDEATHSIG); the comparison notices a parent that died before that call.
END_WITH_PARENT = """
import os, signal, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, int(signal.SIGTERM), 0, 0, 0)
if os.getppid() != int(sys.argv.pop(1)):
    sys.exit("the parent process ended before its child started")
"""
