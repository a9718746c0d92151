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
from pathlib import Path

from twisted.internet import reactor
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from routemaster.testing.daemon import LOOPBACK, RUN, Daemon
from tests.daemon.test_deploy import ROOT, UNITS, directives
from tests.system.test_system import SystemCase, until

READ_ONLY = (
    'mount --make-rprivate / && mount --bind "$1" "$1" && mount -o remount,ro,bind / '
    '&& mount -o remount,rw,bind "$1" && shift && exec "$@"'
)
ISOLATED = ("unshare", "--map-root-user", "--mount")
#: a program that runs twistd with its arguments; `isolated`: in a mount namespace
SANDBOX = f"""
import os, sys
shell = [*{ISOLATED!r}, "sh", "-c", {READ_ONLY!r}, "sandbox", {{state!r}}] if {{isolated}} else []
command = [*shell, sys.executable, "-c", {{filtered!r}}, {{state!r}}, {{allowed!r}}, "{{isolated}}", *sys.argv[1:]]
os.execvp(command[0], command)
"""
FILTERED = f"""
import ctypes, errno, os, sys
state, allowed, isolated = sys.argv[1:4]
if isolated == "True":
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
    os.execv(sys.executable, [sys.executable, "-c", {RUN!r}, *sys.argv[4:]])
sys.exit("system calls are not filtered")
"""
#: exit status 3: memory that was written cannot be executed, and pyOpenSSL needs that; 0: it does not; 1: unknown
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


def can_isolate() -> bool:
    """Whether mount namespaces are allowed here: if not, as in some containers, the file system stays writable."""
    if shutil.which(ISOLATED[0]) is None:
        return False
    return subprocess.call([*ISOLATED, "true"], stderr=subprocess.DEVNULL) == 0


class SandboxTests(SystemCase):
    """A bus in the sandbox."""

    async def test_it_works(self) -> None:
        """With an embedded Redis and a certificate of its own it starts, accepts, delivers, and stops cleanly."""
        state, calls = self.place / "state", ",".join(sorted(allowed(UNITS[0])))
        program = SANDBOX.format(state=str(state), allowed=calls, filtered=FILTERED, isolated=can_isolate())
        daemon = Daemon(reactor, state, "--ca-file", str(self.ca), program=program)
        self.addCleanup(daemon.end)
        await daemon.start()
        client, sink = self.client(daemon), self.sink()
        await self.make_topics(client, "cats")
        await self.ok(client.subscribe(sink.url.replace(LOOPBACK, "localhost"), "cats", timeout=0))
        await self.ok(client.publish("cats", 1))
        await until(lambda: sink.received, "a delivery")
        await self.ok(client.ask("GET", "/metrics"), 200)
        self.assertEqual(await daemon.stop(), 0)
        self.assertNotIn("Traceback", daemon.log)
        self.assertNotIn("not permitted", daemon.log)


class MemoryTests(SynchronousTestCase):
    """Why the units do without MemoryDenyWriteExecute."""

    def test_callbacks_need_executable_memory(self) -> None:
        """pyOpenSSL makes its callbacks in memory that is written and then executed; once it does not, set it."""
        paths = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        done = subprocess.run([sys.executable, "-c", EXECUTABLE_MEMORY], check=False,
                              env={"PYTHONPATH": paths})  # fmt: skip
        self.assertIn(done.returncode, (1, 3))  # 1: this kernel cannot refuse it
        for unit in UNITS:
            self.assertNotIn("MemoryDenyWriteExecute", dict(directives(unit, "Service")))
