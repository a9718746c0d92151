"""The bus works within the sandbox of its systemd unit, as far as that can be built without systemd as process 1.

`SANDBOX` applies what would break a bus: the filter of system calls, as the
unit has it, with the same error; a file system that is read-only but for the
state directory; no new privileges; no executable memory if asked.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.internet import reactor
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from routemaster.testing.daemon import RUN, Client, Daemon
from tests.daemon.test_deploy import ROOT, UNITS, directives

READ_ONLY = (
    'mount --make-rprivate / && mount --bind "$1" "$1" && mount -o remount,ro,bind / '
    '&& mount -o remount,rw,bind "$1" && shift && exec "$@"'
)
#: a program that runs twistd with its arguments; it has the state directory and the allowed system calls
SANDBOX = f"""
import os, sys
shell = ["sh", "-c", {READ_ONLY!r}, "sandbox", {{state!r}}]
filtered = [sys.executable, "-c", {{filtered!r}}, {{state!r}}, {{allowed!r}}]
os.execvp("unshare", ["unshare", "--map-root-user", "--mount", *shell, *filtered, *sys.argv[1:]])
"""
FILTERED = f"""
import ctypes, errno, os, sys
state, allowed = sys.argv[1:3]
try:
    open(os.path.join(sys.prefix, "written"), "w")
except OSError as error:
    assert error.errno == errno.EROFS, error
else:
    sys.exit("the file system can be written")
assert ctypes.CDLL(None).prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
seccomp = ctypes.CDLL("libseccomp.so.2")
seccomp.seccomp_init.restype = ctypes.c_void_p
rules = ctypes.c_void_p(seccomp.seccomp_init(0x00050000 | errno.EPERM))
for name in allowed.split(","):
    number = seccomp.seccomp_syscall_resolve_name(name.encode())
    if number >= 0:  # else it is no system call of this architecture
        assert seccomp.seccomp_rule_add(rules, 0x7fff0000, number, 0) == 0, name
assert seccomp.seccomp_load(rules) == 0
try:
    os.chown(state, -1, -1)
except PermissionError:
    os.execv(sys.executable, [sys.executable, "-c", {RUN!r}, *sys.argv[3:]])
sys.exit("system calls are not filtered")
"""
#: exit status 3: memory that was written cannot be executed, and pyOpenSSL needs that; 0: it does not
EXECUTABLE_MEMORY = """
import ctypes, sys
from OpenSSL.SSL import TLS_METHOD, Context
if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0):  # PR_SET_MDWE, Linux 6.3
    sys.exit("unknown")
try:
    Context(TLS_METHOD).set_alpn_select_callback(lambda *_: b"")
except MemoryError:
    sys.exit(3)
"""


def system_calls(name: str) -> set[str]:
    """The system calls of a set, such as @system-service; raises SkipTest without systemd-analyze."""
    program = shutil.which("systemd-analyze")
    if program is None:
        raise SkipTest("systemd-analyze is not here")
    words = subprocess.check_output([program, "--no-pager", "syscall-filter", name], text=True).splitlines()
    found = {word.strip() for word in words[1:] if word.strip() and not word.strip().startswith("#")}
    return set().union(*(system_calls(each) if each.startswith("@") else {each} for each in found))


def allowed(unit: Path) -> set[str]:
    """The system calls that a unit allows."""
    found = system_calls("@default")
    for value in (value for name, value in directives(unit, "Service") if name == "SystemCallFilter"):
        named = set().union(*(system_calls(each) for each in value.removeprefix("~").split()))
        found = found - named if value.startswith("~") else found | named
    return found | system_calls("@default")


class SandboxTests(TestCase):
    """A bus in the sandbox."""

    timeout = 100

    def setUp(self) -> None:
        namespace = ["unshare", "--map-root-user", "--mount", "true"]
        if shutil.which("unshare") is None or subprocess.run(namespace, check=False).returncode:
            raise SkipTest("this machine allows no mount namespaces")
        self.place = Path(tempfile.mkdtemp(prefix="rm-"))
        self.addCleanup(shutil.rmtree, self.place, ignore_errors=True)

    async def test_it_works(self) -> None:
        """With an embedded Redis and a certificate of its own it starts, serves, and stops cleanly."""
        state, calls = self.place / "state", ",".join(sorted(allowed(UNITS[0])))
        program = SANDBOX.format(state=str(state), allowed=calls, filtered=FILTERED)
        daemon = Daemon(reactor, state, environment={"PYTHONDONTWRITEBYTECODE": "1"}, program=program)
        self.addCleanup(daemon.end)
        await daemon.start()
        client = Client(reactor, daemon, "demo")
        self.addCleanup(client.close)
        self.assertEqual((await client.publish("cats", 1)).status, 204)
        self.assertEqual((await client.ask("GET", "/metrics")).status, 200)
        self.assertEqual(await daemon.stop(), 0)
        self.assertNotIn("Traceback", daemon.log)
        self.assertNotIn("EPERM", daemon.log)


class MemoryTests(SynchronousTestCase):
    """Why the units do without MemoryDenyWriteExecute."""

    def test_callbacks_need_executable_memory(self) -> None:
        """pyOpenSSL makes its callbacks in memory that is written and then executed; once it does not, set it."""
        paths = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        done = subprocess.run([sys.executable, "-c", EXECUTABLE_MEMORY], check=False,
                              env={"PYTHONPATH": paths})  # fmt: skip
        if done.returncode not in (0, 3):
            raise SkipTest("this kernel cannot refuse executable memory")
        self.assertEqual(done.returncode, 3)
        for unit in UNITS:
            self.assertNotIn("MemoryDenyWriteExecute", dict(directives(unit, "Service")))
