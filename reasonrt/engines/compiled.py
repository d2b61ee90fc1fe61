"""What torch has compiled, and a killed compiler has left cut off.

torch keeps compiled libraries in a folder for all its processes and loads each that is there. The linker writes a
library in place: killed with its engine, it leaves one that no later start can load, or that kills who loads it.
Source: torch/_inductor/codecache.py.
"""

import fcntl
import os
import struct
from contextlib import suppress
from pathlib import Path

_ELF64 = struct.Struct("<16xHHIQQQIHHHHHH")  # the header of an object file; its table of sections stands at its end


def remove_cut_off(folder: Path) -> list[Path]:
    """Remove each library in torch's cache that is not whole and that nobody is compiling; say which."""
    removed = []
    for path in [*folder.glob("*/*.so"), *folder.glob("*/*.o")]:
        lock = folder / "locks" / f"{path.name.partition('.')[0]}.lock"
        with suppress(OSError):  # it is compiled right now, or gone already
            if not _is_whole(path):
                lock.parent.mkdir(exist_ok=True)
                with lock.open("ab") as held:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if not _is_whole(path):
                        path.unlink()
                        removed.append(path)
    return removed


def _is_whole(path: Path) -> bool:
    with path.open("rb") as file:
        header = file.read(_ELF64.size)
        if not header.startswith(b"\x7fELF"):
            return any(header)  # of another system, or a linker's that begins with the end
        if len(header) < _ELF64.size:
            return False
        sections, section_bytes, num_sections = (int(_ELF64.unpack(header)[place]) for place in (5, 10, 11))
        return 0 < sections + section_bytes * num_sections <= os.fstat(file.fileno()).st_size
