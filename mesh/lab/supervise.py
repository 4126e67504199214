"""A program of its own: runs a command in private namespaces and takes everything down when it ends.

    python -I -S supervise.py [--probe] -- PROGRAM ARGUMENT...

Standard library only, and started without site packages: it stays resident beside the command, so it is
small. `mesh.lab.private` is the door for the rest of the tree.

Theory of operation. Three processes:

* the supervisor (the process that was asked) makes the namespaces and waits; signals sent to it go on to
  the command;
* the first child is process 1 of the new pid namespace: it mounts /proc, /run and friends, brings `lo` up
  and reaps. When it ends, for whatever reason, the kernel kills every process of that namespace and, with
  the last of them, the network namespaces, their devices and rules go. That is the whole clean-up, and it
  cannot be skipped;
* the command.

The first variant of namespaces that this system allows is taken; each is tried in a throw-away child first.
Real root needs no user namespace and keeps more rights without one; everyone else becomes root in a user
namespace. Where /proc cannot be mounted anew (some containers) the pid namespace is left out and the
parent-death signal, which each process of the chain asks for, does its work.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import pwd
import signal
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

MARKER = "MYCELIA_PRIVATE_NAMESPACE"
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x00020000, 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 2, 4, 8, 16384, 1 << 18
PR_SET_PDEATHSIG = 1
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
SI_USER, SI_TKILL = 0, -6
EXIT_CANNOT = 125
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)

libc = ctypes.CDLL(None, use_errno=True)


class CannotEnterError(Exception):
    """A step of the set-up was refused by the system."""


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise CannotEnterError(f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    def encode(text: str | None) -> bytes | None:
        return None if text is None else text.encode()

    result = libc.mount(encode(source), encode(target), encode(kind), ctypes.c_ulong(flags), encode(options))
    _check(result, f"mount {target}")


def _die_with_parent() -> None:
    libc.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)


def marker() -> str:
    """What the environment variable holds inside: the network namespace it speaks of."""
    status = Path("/proc/self/ns/net").stat()
    return f"{status.st_dev}:{status.st_ino}"


def unshare(flags: int) -> None:
    """Moves this process into new namespaces; for an ordinary user as root of a new user namespace."""
    uid, gid = os.getuid(), os.getgid()
    _check(libc.unshare(ctypes.c_int(flags)), "unshare")
    if flags & CLONE_NEWUSER:
        try:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
            Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
        except OSError as refused:
            raise CannotEnterError(f"map user {uid} to root: {refused.strerror}") from refused


def furnish(*, has_own_pids: bool) -> None:
    """Mounts and devices, in the new namespaces: private mounts, /proc, a tmpfs on /run, `lo` up."""
    _mount("none", "/", None, MS_REC | MS_PRIVATE)
    if has_own_pids:
        _mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    _mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    if Path("/var/run").resolve() != Path("/run"):
        with contextlib.suppress(CannotEnterError):  # no such folder on this system
            _mount("tmpfs", "/var/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    # Nothing needs this one; it makes /sys/class/net show the right devices.
    with contextlib.suppress(CannotEnterError):
        _mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    for folder in ("/run/netns", "/run/lock"):
        Path(folder).mkdir(parents=True, exist_ok=True)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
    except OSError as refused:
        raise CannotEnterError(f"bring lo up: {refused.strerror}") from refused


def _in_child(body: Callable[[], int]) -> int:
    """Forks; the child runs `body` and ends with its result, whatever happens."""
    pid = os.fork()
    if pid == 0:
        code = EXIT_CANNOT
        try:
            code = body()
        finally:
            os._exit(code)
    return pid


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def _trial(flags: int) -> str | None:
    """Tries the whole set-up in throw-away processes. None: works; else the reason."""
    reader, writer = os.pipe2(os.O_CLOEXEC)

    def report(work: Callable[[], None]) -> int:
        try:
            work()
        except CannotEnterError as refused:
            os.write(writer, str(refused).encode())
            return EXIT_CANNOT
        return 0

    def inner() -> int:
        return report(lambda: furnish(has_own_pids=bool(flags & CLONE_NEWPID)))

    def outer() -> int:
        if (code := report(lambda: unshare(flags))) != 0:
            return code
        return _exit_code(os.waitpid(_in_child(inner), 0)[1])

    pid = _in_child(outer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        reason = pipe.read().decode()
    status = os.waitpid(pid, 0)[1]
    return None if status == 0 else reason or f"ended with status {status}"


def choose() -> int:
    """The first combination of namespaces that works here, as unshare flags."""
    basic = CLONE_NEWNET | CLONE_NEWNS
    variants = [basic | CLONE_NEWUSER | CLONE_NEWPID, basic | CLONE_NEWUSER]
    if os.geteuid() == 0:
        variants = [basic | CLONE_NEWPID, *variants, basic]
    reasons: list[str] = []
    for flags in variants:
        reason = _trial(flags)
        if reason is None:
            return flags
        if reason not in reasons:
            reasons.append(reason)
    raise CannotEnterError("; ".join(reasons))


def advice() -> str:
    """What to do about it, from the switches that distributions have."""
    switches = {
        "/proc/sys/kernel/unprivileged_userns_clone": ("0", "sysctl -w kernel.unprivileged_userns_clone=1"),
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": (
            "1",
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        "/proc/sys/user/max_user_namespaces": ("0", "sysctl -w user.max_user_namespaces=15000"),
    }
    for path, (bad, command) in switches.items():
        with contextlib.suppress(OSError):
            if Path(path).read_text().strip() == bad:
                return f"user namespaces are switched off; as root run `{command}`, or run this as root"
    if os.geteuid() == 0:
        return "this root may not make namespaces: run the container with --privileged"
    return "run this as root, or allow user namespaces (a container needs --privileged)"


def _forward(child: int) -> None:
    """Waits for `child`, passing on the signals that were sent to this process alone.

    A terminal delivers its signals to the whole foreground group, so the command has those already.
    """
    watched = {*FORWARDED, signal.SIGCHLD}
    while True:
        info = signal.sigwaitinfo(watched)
        if info.si_signo == signal.SIGCHLD:
            return
        if info.si_code in (SI_USER, SI_TKILL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, info.si_signo)


def _await(child: int) -> int:
    """Forwards signals and reaps orphans until `child` ends; gives its exit code."""
    while True:
        _forward(child)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return EXIT_CANNOT
            if pid == child and (os.WIFEXITED(status) or os.WIFSIGNALED(status)):
                return _exit_code(status)
            if pid == 0:
                break


def _command(argv: list[str]) -> int:
    _die_with_parent()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.environ[MARKER] = marker()
    try:
        os.execvp(argv[0], argv)  # noqa: S606 - on purpose
    except OSError as refused:
        print(f"{argv[0]}: {refused.strerror}", file=sys.stderr)
        return 127 if refused.errno == errno.ENOENT else 126


def _first(argv: list[str], *, has_own_pids: bool) -> int:
    _die_with_parent()
    try:
        furnish(has_own_pids=has_own_pids)
    except CannotEnterError as refused:
        print(f"cannot furnish the private namespace: {refused}", file=sys.stderr)
        return EXIT_CANNOT
    return _await(_in_child(lambda: _command(argv)))


def supervise(argv: list[str]) -> int:
    """Runs `argv` in private namespaces; gives its exit code (128 + signal when it was killed)."""
    with contextlib.suppress(KeyError):
        # Inside, the user looks like root; what is named after the user (scratch folders) keeps the real
        # name.
        os.environ.setdefault("LOGNAME", pwd.getpwuid(os.getuid()).pw_name)
    flags = choose()
    signal.pthread_sigmask(signal.SIG_BLOCK, {*FORWARDED, signal.SIGCHLD})
    unshare(flags)
    return _await(_in_child(lambda: _first(argv, has_own_pids=bool(flags & CLONE_NEWPID))))


def main(arguments: list[str]) -> NoReturn:
    is_probe = arguments[:1] == ["--probe"]
    try:
        if is_probe:
            choose()
            sys.exit(0)
        sys.exit(supervise(arguments[1:]))
    except CannotEnterError as refused:
        print(f"cannot make a private network namespace: {refused} ({advice()})", file=sys.stderr)
        sys.exit(EXIT_CANNOT)


if __name__ == "__main__":
    main(sys.argv[1:])
