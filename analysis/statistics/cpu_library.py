"""`cpu_kernels.c` and its like, compiled when it is first needed and kept for later processes.

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

SOURCES = [Path(__file__).with_name(name) for name in ("cpu_kernels.c", "cpu_rollout.c", "cpu_values.c")]
HEADER = Path(__file__).with_name("cpu_vectors.h")
FLAGS = ("-std=c11", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
# From the fastest to what every gcc and clang knows. Where torch's OpenMP is the compiler's, both share one pool of
# threads. GCC halves the widest vectors of some processors unless it is told not to.
CHOICES = (
    ("-march=native", "-mprefer-vector-width=512", "-fopenmp"),
    ("-march=native", "-fopenmp"),
    ("-march=native", "-fopenmp-simd"),
    ("-fopenmp-simd",),
    (),
)
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
        with contextlib.suppress(OSError, AttributeError):  # not there, or cut off, or another machine's
            return _declared(ctypes.CDLL(str(path)))
        return _compiled(path)
    return None


def _declared(loaded: ctypes.CDLL) -> ctypes.CDLL:
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    loaded.lanes.argtypes, loaded.lanes.restype = [], count
    loaded.read_rows.argtypes, loaded.read_rows.restype = [pointer], None
    loaded.norms_and_products.argtypes = [pointer, count, count, count, count, count, pointer, pointer]
    loaded.norms_and_products.restype = None
    loaded.products_of_parts.argtypes = [pointer, count, count, count, pointer, count, pointer, pointer]
    loaded.products_of_parts.restype = None
    loaded.add_rows.argtypes = [pointer, count, count, count, count, pointer, count, pointer, pointer]
    loaded.add_rows.restype = None
    return loaded


def _compiled(path: Path) -> ctypes.CDLL | None:
    """Compile aside, try it, then rename: another process may be at it too."""
    compiler = next((found for name in (os.environ.get("CC"), "cc", "gcc", "clang") if (found := _which(name))), None)
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        for number, choice in enumerate(CHOICES):
            if "-march=native" in choice and not _features():
                continue
            made = Path(folder) / f"{number}.so"
            command = [compiler, *FLAGS, *choice, *map(str, SOURCES), "-o", str(made), "-lm"]
            with contextlib.suppress(subprocess.SubprocessError, OSError, AttributeError):
                subprocess.run(command, capture_output=True, timeout=SECONDS, check=True)
                loaded = _declared(ctypes.CDLL(str(made)))
                made.replace(path)
                return loaded
    return None


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
    """Of all that the compiled code depends on. A home folder may be shared by machines of several kinds."""
    sources = [path.read_text(encoding="utf-8") for path in (*SOURCES, HEADER)]
    machine = (platform.system(), platform.machine(), platform.libc_ver(), _features())
    return hashlib.sha256(repr((sources, FLAGS, CHOICES, machine)).encode()).hexdigest()[:32]


def _features() -> str:
    """What the processor can do; empty where it does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.lower().startswith(("flags", "features")):
                return line
    return ""
