"""The bootstrap of the sandbox: shuts itself in, then becomes the program. Run by `sandbox.py`, without Catena.

As root it makes namespaces and mounts by itself and then becomes a user whom nobody is; otherwise within a user
namespace. Either way it ends with no rights, no way to get some, and a root folder in memory with Python in it.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import struct
import sys
from pathlib import Path
from typing import Any

CLONE = {"mount": 0x20000, "uts": 0x4000000, "ipc": 0x8000000, "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000}
MS = {"rdonly": 1, "nosuid": 2, "nodev": 4, "remount": 32, "bind": 4096, "rec": 16384, "private": 1 << 18}
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 22, 24, 38
MNT_DETACH = 2
SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/etc/ld.so.cache")
PLACES = ("/tmp", "/mnt", "/media", "/srv", "/var/tmp", "/home")
"""Where the new root may be put together: any folder that Python is not in."""
DEVICES = ("null", "zero", "full", "random", "urandom")
SOME_USER = 100_000
# System calls that a program has no need of and that kernels had holes in; x86-64 and arm64 numbers.
DENIED = {
    "x86_64": (
        0xC000003E,
        (101, 165, 166, 155, 161, 272, 308, 246, 320, 321, 298, 248, 249, 250, 323, 425, 426, 427, 428, 429, 430, 442),
    ),
    "aarch64": (
        0xC00000B7,
        (117, 40, 39, 41, 51, 97, 268, 104, 294, 280, 241, 217, 218, 219, 282, 425, 426, 427, 428, 429, 430, 442),
    ),
}
libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> int:
    """Call a function of the C library; raises `OSError` where it fails."""
    found = int(getattr(libc, name)(*arguments))
    if found < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return found


def say(text: str) -> None:
    """Write to the one who watches."""
    os.write(1, text.encode() + b"\n")


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """Mount a file system."""
    texts = [None if text is None else text.encode() for text in (source, target, kind, options)]
    call("mount", texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3])


def namespaces() -> bool:
    """Part from the machine's mounts, network, processes and users; return whether root's own rights did it."""
    user, group = os.getuid(), os.getgid()
    flags = sum(CLONE[name] for name in ("mount", "uts", "ipc", "pid", "net"))
    if user == 0:
        try:
            call("unshare", flags)
            return True
        except OSError:
            pass  # root of a container without that right: it may still have a user namespace
    call("unshare", CLONE["user"] | flags)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    return False


def new_root(spec: dict[str, Any]) -> None:
    """Make a folder in memory the root of everything, with Python's files in it, read-only."""
    mount("none", "/", None, MS["rec"] | MS["private"])
    root = next(place for place in PLACES if Path(place).is_dir() and not _holds(place, spec["roots"]))
    mount("tmpfs", root, "tmpfs", MS["nosuid"] | MS["nodev"], f"size={spec['file'] + (4 << 20)},mode=755,nr_inodes=10k")
    for name in ("tmp", "old"):
        Path(root, name).mkdir(exist_ok=True)
    mount("tmpfs", f"{root}/tmp", "tmpfs", MS["nosuid"] | MS["nodev"], f"size={spec['file']},mode=1777,nr_inodes=10k")
    for place in dict.fromkeys((*SYSTEM, *spec["roots"])):
        _show(place, root)
    Path(root, "dev").mkdir(exist_ok=True)
    for name in DEVICES:
        target = Path(root, "dev", name)
        target.touch()
        mount(f"/dev/{name}", str(target), None, MS["bind"])
    os.chdir(root)
    call("syscall", ctypes.c_long(155 if os.uname().machine == "x86_64" else 41), b".", b"old")
    os.chdir("/")
    call("umount2", b"/old", MNT_DETACH)
    Path("/old").rmdir()
    Path("/tmp/program.py").write_text(spec["program"], encoding="utf-8", errors="surrogatepass")
    mount("none", "/", None, MS["remount"] | MS["bind"] | MS["rdonly"] | MS["nosuid"])


def _holds(place: str, roots: list[str]) -> bool:
    return any(Path(one).is_relative_to(place) for one in roots)


def _show(place: str, root: str) -> None:
    source, target = Path(place), Path(root + place)
    if source.is_symlink():
        if not target.is_symlink() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source.readlink())
        return
    if not source.exists() or (
        target.exists() and any(Path(place).is_relative_to(one) for one in SYSTEM if one != place)
    ):
        return
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    mount(place, str(target), None, MS["bind"])
    # A bind mount becomes read-only by a second call; what the first one locked must be said again.
    mount("none", str(target), None, MS["remount"] | MS["bind"] | MS["rdonly"] | MS["nosuid"] | _locked(place))


def _locked(place: str) -> int:
    """Return the flags that a mount has and that may not be taken off in a user namespace."""
    flags = os.statvfs(place).f_flag
    kept = 0
    for bit, flag in ((os.ST_NODEV, 4), (os.ST_NOEXEC, 8), (os.ST_NOATIME, 1024), (os.ST_NODIRATIME, 2048)):
        kept |= flag if flags & bit else 0
    if flags & getattr(os, "ST_RELATIME", 4096):
        kept |= 1 << 21
    return kept


def give_up_rights(user: int | None) -> None:
    """Become nobody, with no capabilities and no way to get some; `user` is the id of that nobody, for root."""
    for capability in range(64):
        if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            break
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    else:
        header, empty = struct.pack("=II", 0x20080522, 0), struct.pack("=6I", *([0] * 6))
        call("capset", header, empty)
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def limit(spec: dict[str, Any]) -> None:
    """Set limits that every process of the program has."""
    for name, value in (
        ("RLIMIT_AS", spec["memory"]),
        ("RLIMIT_DATA", spec["memory"]),
        ("RLIMIT_CPU", int(spec["seconds"]) + 1),
        ("RLIMIT_FSIZE", spec["file"]),
        ("RLIMIT_NOFILE", 64),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_STACK", 8 << 20),
        ("RLIMIT_NPROC", spec["processes"]),
    ):
        resource.setrlimit(getattr(resource, name), (value, value))


def filter_calls() -> None:
    """Let the kernel refuse (EPERM) system calls that a program has no need of."""
    if os.uname().machine not in DENIED:
        return
    architecture, numbers = DENIED[os.uname().machine]
    load, equal, give = 0x20, 0x15, 0x06
    program = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, 0x80000000), (load, 0, 0, 0)]
    for at, number in enumerate(numbers):
        program.append((equal, len(numbers) - at, 0, number))
    program += [(give, 0, 0, 0x7FFF0000), (give, 0, 0, 0x50001)]
    code = b"".join(struct.pack("=HBBI", *one) for one in program)
    buffer = ctypes.create_string_buffer(code)
    header = struct.pack("@HxxxxxxP", len(program), ctypes.addressof(buffer))
    call("prctl", PR_SET_SECCOMP, 2, header, 0, 0)


def main() -> None:
    """Read what to run, shut in, become it. Ends with the program's own exit code."""
    spec = json.loads(sys.stdin.buffer.read())
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    user = None
    try:
        if spec["contained"] and namespaces():
            # Of its own, as the kernel counts processes by user. Inside, every program's bootstrap has the number 1.
            user = SOME_USER + os.getpid()
    except OSError as error:
        say(f"namespaces are refused: {error}")
        os._exit(spec["refused"])
    inner = os.fork()  # the first process of the new namespace of processes
    if inner:
        _, status = os.waitpid(inner, 0)
        code = os.waitstatus_to_exitcode(status)
        os._exit(code if code >= 0 else 128 - code)
    become(spec, user)


def become(spec: dict[str, Any], user: int | None) -> None:
    """Finish the walls, and become the program."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    arguments = [spec["python"], "-I", "-S", "-B"]
    try:
        if spec["contained"]:
            new_root(spec)
            os.chdir("/tmp")
            limit(spec)
            give_up_rights(user)
            filter_calls()
            arguments.append("/tmp/program.py")
        else:
            limit({**spec, "processes": max(spec["processes"], 4096)})
            arguments += ["-c", spec["program"]]
    except OSError as error:
        say(f"the walls cannot be made: {error}")
        os._exit(spec["refused"])
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.execve(spec["python"], arguments, {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LC_ALL": "C.UTF-8"})


if __name__ == "__main__":
    main()
