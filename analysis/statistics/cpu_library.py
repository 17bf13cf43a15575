"""`cpu_kernels.c`, compiled when it is first needed and kept for later processes.

The compiler is the C compiler of the machine, as torch.compile and Triton use it too. Where there is none, or where
QKVIT_COMPILE=0 says so, the same numbers are computed by torch, slower.
"""

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

SOURCE = Path(__file__).with_name("cpu_kernels.c")
FLAGS = ("-std=c11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
# From the fastest to what every compiler knows. Threads are those of torch, whose OpenMP is in the process already.
CHOICES = (("-march=native", "-fopenmp"), ("-march=native", "-fopenmp-simd"), ("-fopenmp-simd",), ())
SECONDS = 60  # a compiler that takes longer hangs


@lru_cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they cannot be had."""
    return find_library()


def find_library() -> ctypes.CDLL | None:
    """As `library`, which remembers it."""
    if os.environ.get("QKVIT_COMPILE") == "0" or platform.system() not in ("Linux", "Darwin"):
        return None
    with contextlib.suppress(OSError, RuntimeError):  # no home, no room, no right to write
        path = _folder() / f"{_fingerprint()}.so"
        if not path.exists() and not _compile(path):
            return None
        return _declared(ctypes.CDLL(str(path)))
    return None


def _declared(loaded: ctypes.CDLL) -> ctypes.CDLL:
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    loaded.read_rows.argtypes, loaded.read_rows.restype = [pointer], None
    loaded.norms_and_products.argtypes = [pointer, count, count, count, count, pointer, pointer]
    loaded.norms_and_products.restype = None
    return loaded


def _compile(path: Path) -> bool:
    """Compile aside, then rename: another process may be at it too."""
    compiler = next((found for name in (os.environ.get("CC"), "cc", "gcc", "clang") if (found := _which(name))), None)
    if compiler is None:
        return False
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / "kernels.so"
        for choice in CHOICES:
            command = [compiler, *FLAGS, *choice, str(SOURCE), "-o", str(made), "-lm"]
            with contextlib.suppress(subprocess.SubprocessError, OSError):
                if subprocess.run(command, capture_output=True, timeout=SECONDS, check=False).returncode == 0:
                    made.replace(path)
                    return True
    return False


def _which(name: str | None) -> str | None:
    return shutil.which(name) if name else None


def _folder() -> Path:
    """A folder that is this user's alone: what lies there is loaded and run."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qkvit" / "kernels"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"{folder} can be written to by others")
    return folder


def _fingerprint() -> str:
    """Of all that the compiled code depends on: the source, the flags, and the processor that it is compiled for."""
    parts = (SOURCE.read_text(encoding="utf-8"), repr((FLAGS, CHOICES)), platform.system(), _processor())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _processor() -> str:
    """What the processor can do. A home folder may be shared by machines of several kinds."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return f"{platform.machine()} {platform.processor()}"
