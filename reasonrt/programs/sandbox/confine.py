"""The wrapper that a worker is started through: it gives up every right that running a program does not need.

Run as `python -s -S -P confine.pyc [--memory N] [--files N] [--read PATH] [--list PATH] [--exec PATH] MODE ARGUMENT`,
as `launch.py` puts it together. Modes: `exec BINARY ARGUMENT ...` becomes that program, `worker FOLDER MODULE` runs
that module in this process, `probe KIND FOLDER` tries what must fail and reports. It imports the fast half of the
standard library and no more, and needs no privilege. After it:

* Landlock: what `--read`, `--list` and `--exec` name can be opened, listed and run, nothing else, and nothing for
  writing; no TCP; no abstract sockets and no signals out of the domain, where the kernel's version has these.
* seccomp: a list of calls that are allowed. No socket, no process, no ptrace, no signal to another process, no file
  opened for writing; a worker starts no thread and no program.
* limits: address space, descriptors, no core, no files written; no capabilities; no new privileges; no environment;
  its own session; descriptors 0 and 1 alone, 2 leads to nowhere.
"""

import ctypes
import errno
import mmap
import os
import resource
import struct
import sys

READ_FILE, READ_DIR, EXECUTE = 1 << 2, 1 << 3, 1 << 0
RIGHTS_BY_FLAG = {"--read": READ_FILE, "--list": READ_DIR, "--exec": READ_FILE | EXECUTE}
FILE_RIGHTS_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
BIND_AND_CONNECT_TCP = 0b11
ABSTRACT_SOCKETS_AND_SIGNALS = 0b11
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on every machine
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 22, 24, 38
MAX_CAPABILITY = 63
SIGKILL = 9  # the module `signal` takes longer to import than all that this file does
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000
CLONE_THREAD, CLONE_NAMESPACES = 0x00010000, 0x7E020000
FOR_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
TCGETS, FIOCLEX = 0x5401, 0x5451
F_DUPFD_CLOEXEC = 1030
CLONE3 = 435

MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
# name: number on x86_64, number on aarch64; None where the machine has no such call
CALLS: dict[str, tuple[int | None, int | None]] = {
    "access": (21, None),
    "arch_prctl": (158, None),
    "brk": (12, 214),
    "clock_getres": (229, 114),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "close": (3, 57),
    "dup": (32, 23),
    "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21),
    "epoll_wait": (232, None),
    "epoll_pwait": (281, 22),
    "eventfd2": (290, 19),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "fstat": (5, 80),
    "futex": (202, 98),
    "getcwd": (79, 17),
    "getdents64": (217, 61),
    "getegid": (108, 177),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "getrandom": (318, 278),
    "getrlimit": (97, 163),
    "getrusage": (98, 165),
    "gettid": (186, 178),
    "gettimeofday": (96, 169),
    "getuid": (102, 174),
    "lseek": (8, 62),
    "lstat": (6, None),
    "madvise": (28, 233),
    "membarrier": (324, 283),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "munmap": (11, 215),
    "nanosleep": (35, 101),
    "newfstatat": (262, 79),
    "poll": (7, None),
    "ppoll": (271, 73),
    "pread64": (17, 67),
    "read": (0, 63),
    "readv": (19, 65),
    "rseq": (334, 293),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sched_getaffinity": (204, 123),
    "sched_yield": (24, 124),
    "set_robust_list": (273, 99),
    "set_tid_address": (218, 96),
    "sigaltstack": (131, 132),
    "stat": (4, None),
    "statx": (332, 291),
    "sysinfo": (99, 179),
    "time": (201, None),
    "uname": (63, 160),
    "write": (1, 64),
    "writev": (20, 66),
}

_libc = ctypes.CDLL(None, use_errno=True)


def main(arguments: list[str]) -> None:
    """Confine this process, then do what the mode says; never returns."""
    limits = {"--memory": 1 << 30, "--files": 32}
    paths: dict[str, list[str]] = {flag: [] for flag in RIGHTS_BY_FLAG}
    while arguments[0].startswith("--"):
        name, value, *arguments = arguments
        if name in limits:
            limits[name] = int(value)
        else:
            paths[name].append(value)
    mode, target, *rest = arguments
    confine(target if mode == "probe" else mode, limits["--memory"], limits["--files"], paths)
    if mode == "probe":
        probe(rest[0])
    elif mode == "worker":
        sys.path.insert(0, target)
        __import__(rest[0], fromlist=["serve"]).serve()
    else:
        os.execve(target, [target, *rest], {})  # noqa: S606


def confine(kind: str, memory_bytes: int, max_files: int, paths: dict[str, list[str]]) -> None:
    """Give up the rights; `kind` is `exec` or `worker`. Raises OSError where the kernel refuses one of the steps."""
    os.environ.clear()
    os.chdir("/")
    _drop_descriptors()
    if os.getpid() != os.getsid(0):
        os.setsid()  # no terminal, and no Ctrl-C: the parent ends it
    if kind == "worker":
        _prctl(PR_SET_PDEATHSIG, SIGKILL)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_MEMLOCK, 0)
    _limit(resource.RLIMIT_NOFILE, max_files)
    _limit(resource.RLIMIT_AS, memory_bytes)
    if kind == "worker":
        _limit(resource.RLIMIT_NPROC, 0)
    _drop_capabilities()
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _landlock(paths)
    _seccomp(kind)


def _drop_descriptors() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[1] if sys.platform != "linux" else 1 << 20)


def _limit(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))


def _drop_capabilities() -> None:
    """Root keeps its number and nothing else; without root there is nothing to drop."""
    for capability in range(MAX_CAPABILITY + 1):
        _libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    header = struct.pack("=Ii", 0x20080522, 0)  # version 3, this process
    if _libc.capset(header, bytes(24)) != 0:
        raise OSError(ctypes.get_errno(), "cannot drop capabilities")


def _landlock(paths: dict[str, list[str]]) -> None:
    abi = _syscall(CREATE_RULESET, None, 0, 1)
    rights = FILE_RIGHTS_BY_ABI[min(abi, 5)]
    handled = [rights] + [BIND_AND_CONNECT_TCP] * (abi >= 4) + [ABSTRACT_SOCKETS_AND_SIGNALS] * (abi >= 6)
    attributes = struct.pack(f"={len(handled)}Q", *handled)
    rules = _syscall(CREATE_RULESET, attributes, len(attributes), 0)
    for flag, allowed in RIGHTS_BY_FLAG.items():
        for path in paths[flag]:
            file = os.open(path, os.O_PATH | os.O_CLOEXEC)
            _syscall(ADD_RULE, rules, 1, struct.pack("=Qi", allowed, file), 0)
            os.close(file)
    _syscall(RESTRICT_SELF, rules, 0)
    os.close(rules)


def _seccomp(kind: str) -> None:
    program = _filter(kind)
    buffer = ctypes.create_string_buffer(program)
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    _prctl(PR_SET_SECCOMP, 2, ctypes.c_char_p(header))


def _filter(kind: str) -> bytes:
    """A BPF program: what is named is allowed, everything else is refused with EPERM."""
    arch, column = MACHINES[os.uname().machine]
    load, equal, masked, give = 0x20, 0x15, 0x54, 0x06

    def word(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("=HBBI", code, yes, no, value)

    def argument(index: int) -> int:
        return 16 + 8 * index  # its low half: both machines are little-endian

    def only(number: int | None, index: int, values: tuple[int, ...], mask: int = 0xFFFFFFFF) -> bytes:
        """Allow a call where an argument, masked, is one of `values`."""
        if number is None:
            return b""
        checks = word(load, argument(index)) + word(masked, mask)
        for value in values:
            checks += word(equal, value, 0, 1) + word(give, ALLOW)
        checks += word(give, REFUSE | errno.EPERM)
        return word(equal, number, 0, len(checks) // 8) + checks

    x86 = column == 0
    program = word(load, 4) + word(equal, arch, 1, 0) + word(give, KILL) + word(load, 0)
    for numbers in CALLS.values():
        number = numbers[column]
        if number is not None:
            program += word(equal, number, 0, 1) + word(give, ALLOW)
    own = (os.getpid(),)
    program += only(2 if x86 else None, 1, (0,), FOR_WRITING)  # open
    program += only(257 if x86 else 56, 2, (0,), FOR_WRITING)  # openat
    program += only(16 if x86 else 29, 1, (TCGETS, FIOCLEX))  # ioctl
    program += only(72 if x86 else 25, 1, (0, 1, 2, 3, 4, F_DUPFD_CLOEXEC))  # fcntl: no owner, no lease, no lock
    program += only(62 if x86 else 129, 0, own)  # kill
    program += only(234 if x86 else 131, 0, own)  # tgkill
    program += only(302 if x86 else 261, 0, (0,))  # prlimit64
    if kind == "exec":
        program += only(56 if x86 else 220, 0, (CLONE_THREAD,), CLONE_THREAD | CLONE_NAMESPACES)  # clone
        program += word(equal, 59 if x86 else 221, 0, 1) + word(give, ALLOW)  # execve: what Landlock lets it
    program += word(equal, CLONE3, 0, 1) + word(give, REFUSE | errno.ENOSYS)  # its flags are behind a pointer
    return program + word(give, REFUSE | errno.EPERM)


def probe(folder: str) -> None:
    """Try what must fail, and write one line for each: its name, and `held` or what happened.

    Args:
        folder: where the parent may write, and this process must not.
    """
    for name, attempt in ATTEMPTS.items():
        try:
            outcome = attempt(folder)
        except (OSError, MemoryError) as error:
            code = getattr(error, "errno", None) or errno.ENOMEM
            expected = code in (errno.EACCES, errno.EPERM, errno.ENOMEM, errno.EMFILE, errno.EAGAIN)
            outcome = "held" if expected else f"failed with {errno.errorcode.get(code, code)}"
        os.write(1, f"{name}: {outcome}\n".encode())
    os._exit(0)


def _read_file(folder: str) -> str:
    return f"read {len(_read('/etc/passwd'))} bytes"


def _list_folder(folder: str) -> str:
    return f"listed {len(os.listdir('/'))} names"


def _write_file(folder: str) -> str:
    os.close(os.open(folder + "/written", os.O_WRONLY | os.O_CREAT))
    return "written"


def _environment(folder: str) -> str:
    left = bytes(_read("/proc/self/environ"))  # refused, or empty
    return f"holds {len(left)} bytes" if left else "held"


def _descriptors(folder: str) -> str:
    left = []
    for number in range(3, 1024):
        try:
            os.fstat(number)
        except OSError:
            continue
        left.append(number)
    return f"inherited {left}" if left else "held"


def _many_descriptors(folder: str) -> str:
    for _ in range(4096):
        os.dup(0)
    return "opened 4096"


def _tcp_socket(folder: str) -> str:
    return _open_socket(2)


def _local_socket(folder: str) -> str:
    return _open_socket(1)


def _fork(folder: str) -> str:
    child = os.fork()
    if child == 0:
        os._exit(0)
    return "forked"


def _execute(folder: str) -> str:
    os.execve("/bin/sh", ["/bin/sh", "-c", "echo run"], {})  # noqa: S606


def _kill_parent(folder: str) -> str:
    os.kill(os.getppid(), 0)
    return "may signal its parent"


def _trace(folder: str) -> str:
    if _libc.ptrace(0, 0, None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")
    return "traced"


def _memory(folder: str) -> str:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return "has no limit"
    mmap.mmap(-1, limit)  # with what it has already it is more
    return f"got {limit} bytes"


def _raise_limits(folder: str) -> str:
    for which in (resource.RLIMIT_AS, resource.RLIMIT_NOFILE):
        try:
            resource.setrlimit(which, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        except ValueError:  # what Python makes of EPERM here
            raise PermissionError(errno.EPERM, "setrlimit") from None
    return "raised"


ATTEMPTS = {
    "reading a file": _read_file,
    "listing a folder": _list_folder,
    "writing a file": _write_file,
    "reading the environment": _environment,
    "inheriting descriptors": _descriptors,
    "opening a socket": _tcp_socket,
    "opening a local socket": _local_socket,
    "starting a process": _fork,
    "running a program": _execute,
    "signalling the parent": _kill_parent,
    "tracing": _trace,
    "taking memory": _memory,
    "raising limits": _raise_limits,
    "taking descriptors": _many_descriptors,  # last: none is left after it
}


def _open_socket(family: int) -> str:
    if _libc.socket(family, 1, 0) < 0:
        raise OSError(ctypes.get_errno(), "socket")
    return "made"


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()


def _prctl(what: int, *values: object) -> None:
    padded = [*values, *([0] * (4 - len(values)))]
    if _libc.prctl(what, *(ctypes.c_ulong(x) if isinstance(x, int) else x for x in padded)) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {what}")


def _syscall(number: int, *values: object) -> int:
    result = _libc.syscall(ctypes.c_long(number), *(ctypes.c_long(x) if isinstance(x, int) else x for x in values))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"syscall {number}")
    return int(result)


if __name__ == "__main__":
    main(sys.argv[1:])
