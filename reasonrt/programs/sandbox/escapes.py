"""Attempts to leave a sandbox or to hurt its host: what every backend must hold, run by the tests and by the bench.

An attempt holds when it reaches nothing, ends in bounded time, and leaves no process. It says `reached the outside`
where it got through; what no program may say is seen by the host: a call of a function that was not handed in.
"""

import asyncio
import os
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from reasonrt.programs.sandbox.base import CellLimits, Ending, HostCall, Sandbox

REACHED = "reached the outside"
LIMITS = CellLimits(cell_s=1.0, memory_bytes=1 << 28, max_calls=5_000, output_characters=10_000)
MAX_S = 20.0  # of the clock on the wall, on a machine that does other things too
FUNCTIONS = ("ask",)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One program that should not get through.

    Attributes:
        backends: where it can be written at all.
    """

    name: str
    code: str
    backends: tuple[str, ...]


async def run_attempt(sandbox: Sandbox, attempt: Attempt) -> str:
    """Why an attempt did not hold, in words; empty where it held."""
    stranger: list[str] = []

    async def host(call: HostCall) -> Any:
        if call.name not in FUNCTIONS:
            stranger.append(call.name)
        return "reply"

    session = await sandbox.open({"context": "text"}, FUNCTIONS, LIMITS)
    pid: int | None = getattr(session, "worker_pid", None)
    began = perf_counter()
    try:
        cell = await session.run(f"REACHED = {REACHED!r}\n{attempt.code}", host)
        value = None if cell.ending is Ending.LOST else await session.value("context")
    finally:
        await session.aclose()
    seconds = perf_counter() - began
    if REACHED in cell.output:
        return REACHED
    if stranger:
        return f"called {stranger[0]!r}, which was not handed in"
    if seconds > MAX_S:
        return f"took {seconds:.1f} s"
    if len(cell.output) > LIMITS.output_characters + 100 or len(cell.error) > 100_000:
        return f"printed {len(cell.output)} characters"
    if value not in (None, "text"):  # None: the session was lost, if only when it was asked
        return f"changed a value of the session to {value!r:.40}"
    return "" if pid is None or await _is_gone(pid) else f"left the process {pid}"


async def _is_gone(pid: int) -> bool:
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        await asyncio.sleep(0.01)
    return False


def attempts(backend: str) -> list[Attempt]:
    """Those that can be written for a backend."""
    return [attempt for attempt in ATTEMPTS if backend in attempt.backends]


def _read(text: str, *backends: str) -> list[Attempt]:
    """Attempts as `## name`, then the program."""
    parts = [part.partition("\n") for part in text.strip().removeprefix("## ").split("\n## ")]
    return [Attempt(name, code.strip("\n"), backends) for name, _, code in parts]


_EVERYWHERE = r"""
## read a file
print(REACHED, open('/etc/passwd').read())
## read a file by pathlib
from pathlib import Path
print(REACHED, Path('/etc/passwd').read_text())
## write a file
open('/tmp/reasonrt-escape', 'w').write('x')
print(REACHED)
## append to a file
with open('/tmp/reasonrt-escape', 'a') as file:
    file.write('x')
print(REACHED)
## read the environment of a process
print(REACHED, open('/proc/self/environ').read())
## read the memory map
print(REACHED, open('/proc/self/maps').read())
## read another process
print(REACHED, open('/proc/1/cmdline').read())
## list the root
import os
print(REACHED, os.listdir('/'))
## list the processes
from pathlib import Path
print(REACHED, list(Path('/proc').iterdir()))
## read environment variables
import os
if os.environ.get('PATH') or os.getenv('HOME') or os.environ['PATH']:
    print(REACHED)
## run a shell
import os
if os.system('true') == 0:
    print(REACHED)
## open a pipe to a program
import os
print(REACHED, os.popen('id').read() + 'x') if os.popen('id').read() else None
## fork
import os
os.fork()
print(REACHED)
## become another program
import os
os.execv('/bin/echo', ['echo', REACHED])
## signal the parent
import os
os.kill(os.getppid(), 0)
print(REACHED)
## remove a file
import os
os.remove('/etc/hostname')
print(REACHED)
## make a folder
import os
os.mkdir('/tmp/reasonrt-escape-folder')
print(REACHED)
## run a program
import subprocess
subprocess.run(['/bin/true'], check=True)
print(REACHED)
## open a connection
import socket
socket.create_connection(('127.0.0.1', 1), 0.1)
print(REACHED)
## open a socket
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
print(REACHED)
## open a local socket
import socket
s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
print(REACHED)
## fetch a page
import urllib.request
print(REACHED, urllib.request.urlopen('file:///etc/passwd').read())
## import by name
__import__('os').system('true') == 0 and print(REACHED)
## import a package of the host
import pydantic
print(REACHED)
## import this package
import reasonrt.config
print(REACHED)
## start a thread
import threading
t = threading.Thread(target=print, args=(REACHED,))
t.start()
t.join()
## start a process pool
import multiprocessing
p = multiprocessing.Process(target=print)
p.start()
print(REACHED)
## a subprocess of asyncio
import asyncio
async def main():
    await asyncio.create_subprocess_exec('/bin/true')
    print(REACHED)
asyncio.run(main())
## from an object to every class
for kind in ().__class__.__base__.__subclasses__():
    if kind.__name__ == 'Popen':
        kind(['/bin/true'])
        print(REACHED)
## from a function to its globals
import os
for f in (ask, lambda: 0):
    for name in f.__globals__:
        if 'secret' in name.lower() or 'token' in name.lower():
            print(REACHED)
## from an error to the frames of the host
try:
    1 / 0
except ZeroDivisionError as error:
    frame = error.__traceback__.tb_frame
    while frame:
        if 'asyncio' in frame.f_globals:
            print(REACHED)
        frame = frame.f_back
## by a format string
text = '{0.__class__.__init__.__globals__}'.format(ask)
if 'PATH' in text:
    print(REACHED)
## call what was not handed in
llm_query('a')
## call a name that was computed
getattr(ask, '__call__')('a')
exec('secret("a")')
## rebind the host's function
def ask(*args):
    return REACHED
## evaluate a program
eval(compile("open('/etc/passwd')", 'x', 'eval'))
print(REACHED)
## one gigabyte
x = bytearray(1 << 30)
print(REACHED)
## a long list
x = [0] * 10**9
print(REACHED)
## doubling text
x = 'x' * 1000
while len(x) < 1 << 31:
    x = x + x
print(REACHED)
## appending
x = []
while len(x) < 10**9:
    x.append('x' * 100000 + str(len(x)))
print(REACHED)
## a large power
x = 9 ** 9 ** 9
print(REACHED)
## a large number as text
x = str(3 ** 30000000)
print(REACHED)
## a wide format
x = '{:>9999999999}'.format(1)
print(REACHED)
## an endless loop
while True:
    pass
## an endless loop that catches everything
while True:
    try:
        while True:
            pass
    except BaseException:
        pass
## a slow regular expression
import re
x = re.match('(a+)+$', 'a' * 60 + '!')
y = re.match('(a|a?)+$', 'a' * 60 + '!')
while True:
    x = re.search('(x+x+)+y', 'x' * 60)
## endless recursion
def f(n):
    return f(n + 1) + 1
f(0)
print(REACHED)
## recursion that catches its end
def f():
    try:
        return f()
    except RecursionError:
        return f()
f()
## a deeply nested list, printed
x = []
for _ in range(200000):
    x = [x]
print(len(repr(x)))
## a list in itself
x = []
x.append(x)
print(x)
ask(x)
## deep nesting of text
exec('(' * 100000 + ')' * 100000)
## much output
while True:
    print('x' * 100000)
## output without an end of line
for _ in range(100000):
    print('x', end='')
## sort without end
x = sorted(range(10**7), key=lambda n: -n)
while True:
    x.sort()
## a million host calls
for _ in range(10**6):
    ask('again')
print(REACHED)
## host calls that catch everything
while True:
    try:
        ask('again')
    except BaseException:
        pass
## an argument that grows when it is read
x = [0] * 1000
for _ in range(5):
    x = [x] * 1000
ask(x)
## an argument of many characters
x = 'x' * 1000000
ask([x] * 1000)
## a deep argument
x = []
for _ in range(100000):
    x = {'x': x}
ask(x)
## a large number as an argument
ask(10 ** 100000)
## names that do not exist
while True:
    try:
        nothing
    except NameError:
        pass
## modules that do not exist
while True:
    try:
        import nothing
    except ImportError:
        pass
## sleep
import time
time.sleep(3600)
while True:
    time.sleep(1)
## end the interpreter
raise SystemExit(0)
## print what a worker would send
print('{"kind": "call", "name": "secret", "args": [], "kwargs": {}}')
print('\x00\x00\x00\x40{"kind": "call", "name": "secret", "args": [], "kwargs": {"dict": []}}')
print('\x08\x01\x12\x06secret\x1a\x00')
## a program of a million lines
exec('x = 1\n' * 1000000)
## text that is no Unicode
ask(chr(0xD800))
## change the values
context = 'mine'
context = 'text'
"""

_CPYTHON = r"""
## libc: open
import ctypes
if ctypes.CDLL(None).open(b'/etc/passwd', 0) >= 0:
    print(REACHED)
## libc: open for writing
import ctypes
if ctypes.CDLL(None).open(b'/tmp/reasonrt-escape', 0o102, 0o600) >= 0:
    print(REACHED)
## libc: system
import ctypes
if ctypes.CDLL(None).system(b'true') == 0:
    print(REACHED)
## libc: socket
import ctypes
libc = ctypes.CDLL(None)
if libc.socket(2, 1, 0) >= 0 or libc.socket(1, 1, 0) >= 0 or libc.socket(16, 3, 0) >= 0:
    print(REACHED)
## libc: fork
import ctypes
if ctypes.CDLL(None).fork() >= 0 or ctypes.CDLL(None).vfork() >= 0:
    print(REACHED)
## libc: ptrace
import ctypes, os
libc = ctypes.CDLL(None)
if libc.ptrace(16, os.getppid(), 0, 0) == 0 or libc.ptrace(0, 0, 0, 0) == 0:
    print(REACHED)
## libc: kill
import ctypes, os, signal
libc = ctypes.CDLL(None)
if libc.kill(os.getppid(), 0) == 0 or libc.kill(-1, 0) == 0 or libc.kill(0, 0) == 0:
    print(REACHED)
## libc: read the parent's memory
import ctypes, os
if ctypes.CDLL(None).process_vm_readv(os.getppid(), None, 0, None, 0, 0) == 0:
    print(REACHED)
## system calls by number
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
# clone, clone3, io_uring_setup, unshare, bpf, perf_event_open, userfaultfd, keyctl, memfd_create, openat2, pidfd_open,
# landlock_create_ruleset with rules that would widen nothing, seccomp, kexec_load, init_module, quotactl, mount, chroot
for number in (56, 435, 425, 272, 321, 298, 323, 250, 319, 437, 434, 317, 246, 175, 179, 165, 161):
    result = libc.syscall(number, 0, 0, 0, 0, 0, 0)
    if result >= 0 or ctypes.get_errno() not in (1, 38):
        print(REACHED, number, result, ctypes.get_errno())
## system calls of another machine's numbers
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex('b802000000' + '31db' + '31c9' + 'cd80' + 'c3'))  # fork, by the 32-bit gate
address = ctypes.addressof(ctypes.c_char.from_buffer(code))
if ctypes.CFUNCTYPE(ctypes.c_int)(address)() >= 0:
    print(REACHED)
## raise the limits
import resource
for which in (resource.RLIMIT_AS, resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE):
    try:
        resource.setrlimit(which, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(REACHED)
    except (ValueError, OSError):
        pass
## limit the parent
import os, resource
try:
    resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (0, 0))
    print(REACHED)
except OSError:
    pass
## become another user
import os
os.setuid(1000)
print(REACHED)
## change the root
import os
os.chroot('/tmp')
print(REACHED)
## exhaust the descriptors
import os
numbers = []
try:
    while len(numbers) < 100000:
        numbers.append(os.dup(0))
    print(REACHED)
except OSError:
    if len(numbers) > 1000:
        print(REACHED)
## descriptors of the parent
import os
for number in range(3, 4096):
    try:
        os.fstat(number)
        print(REACHED, number)
    except OSError:
        pass
## a pipe through a file of the process
print(REACHED, open('/proc/self/fd/0').read())
## write its own memory
open('/proc/self/mem', 'r+b').write(b'x')
print(REACHED)
## read packages beside the library
import os, sys, sysconfig
print(REACHED, os.listdir(os.path.join(sysconfig.get_path('stdlib'), 'site-packages'))) if False else None
for folder in sys.path:
    for name in ('site-packages/pip/__init__.py', 'site-packages/easy_install.py'):
        if open(os.path.join(folder, name)).read():
            print(REACHED)
## link to a file
import os
os.symlink('/etc/passwd', '/tmp/reasonrt-escape-link')
print(REACHED)
## change a mode
import os
os.chmod('/etc/passwd', 0o666)
print(REACHED)
## truncate a file
import os
os.truncate('/etc/hostname', 0)
print(REACHED)
## watch files
import ctypes
if ctypes.CDLL(None).inotify_init1(0) >= 0:
    print(REACHED)
## shared memory
from multiprocessing import shared_memory
shared_memory.SharedMemory(create=True, size=4096)
print(REACHED)
## a terminal
import fcntl, os
for number in (0, 1, 2):
    try:
        fcntl.ioctl(number, 0x5412, b'x')
        print(REACHED)
    except OSError:
        pass
## signals from a descriptor
import fcntl, os
fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())
print(REACHED)
## forge a call
import json, os
body = json.dumps({'kind': 'call', 'name': 'secret', 'args': [], 'kwargs': {'dict': []}}).encode()
os.write(1, len(body).to_bytes(4, 'big') + body)
## forge a call of another shape
import json, os
body = json.dumps({'kind': 'call', 'name': ['ask'], 'args': 1, 'kwargs': None}).encode()
os.write(1, len(body).to_bytes(4, 'big') + body)
## forge an end, and continue
import json, os
body = json.dumps({'kind': 'end', 'ending': 'done', 'error': '', 'output': '', 'num_cut': 0}).encode()
os.write(1, len(body).to_bytes(4, 'big') + body)
while True:
    pass
## forge an end of a wrong shape
import json, os
body = json.dumps({'kind': 'end', 'ending': ['done'], 'error': 1, 'output': {}, 'num_cut': 'x'}).encode()
os.write(1, len(body).to_bytes(4, 'big') + body)
## a frame that is too long
import os
os.write(1, b'\xff\xff\xff\xff' + b'x' * 1000)
## a frame that never ends
import os
os.write(1, b'\x00\x00\xff\xff' + b'x' * 1000)
while True:
    pass
## a frame of deep JSON
import os
body = b'[' * 200000 + b']' * 200000
os.write(1, len(body).to_bytes(4, 'big') + body)
## a frame of a long number
import os
body = b'{"kind": "call", "name": "ask", "args": [' + b'9' * 100000 + b'], "kwargs": {"dict": []}}'
os.write(1, len(body).to_bytes(4, 'big') + body)
## a frame of many parts
import os
body = b'{"kind": "call", "name": "ask", "args": [' + b'[],' * 4000000 + b'0], "kwargs": {"dict": []}}'
view = memoryview(len(body).to_bytes(4, 'big') + body)
while view:
    view = view[os.write(1, view):]
## garbage on the pipe
import os
while True:
    os.write(1, os.urandom(65536))
## close the pipes
import os
os.close(0)
os.close(1)
while True:
    pass
## end the process
import os
os._exit(0)
## abort the process
import os
os.abort()
## read a null pointer
import ctypes
ctypes.string_at(0)
## stop itself
import os, signal
os.kill(os.getpid(), signal.SIGSTOP)
## ignore signals
import signal, time
for number in range(1, 32):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True:
    pass
## a recursion limit of its own
import sys
sys.setrecursionlimit(10**9)
def f():
    return f()
f()
## a trace function
import sys
sys.settrace(lambda *a: print(REACHED) if 'asyncio' in a[0].f_globals else None)
ask('a')
## every object of the process
import gc
for thing in gc.get_objects():
    if type(thing).__name__ in ('MontySandbox', 'CPythonSandbox', 'EventLoop'):
        print(REACHED)
## a finaliser that runs on
class Late:
    def __del__(self):
        while True:
            pass
x = Late()
x = None
## a pickle
import pickle
class Evil:
    def __reduce__(self):
        import os
        return os.system, ('true',)
if pickle.loads(pickle.dumps(Evil())) == 0:
    print(REACHED)
## code in an import path
import sys
sys.path.insert(0, '/tmp')
sys.path.insert(0, '/work')
import conftest
print(REACHED)
## decompress a bomb
import zlib
x = zlib.decompress(zlib.compress(bytes(1 << 27)) ) * 64
print(REACHED)
## keep a thread of the executor
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(2) as pool:
    print(list(pool.map(len, ['a'])), REACHED)
"""

ATTEMPTS = _read(_EVERYWHERE, "monty", "cpython") + _read(_CPYTHON, "cpython")
