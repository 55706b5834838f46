"""The kernels on this host, where a loop takes the place of the grid.

Either their CUDA sources, compiled as C++, or the PTX that nvcc makes of them for a device,
translated to C++ instruction by instruction.
"""

import ctypes
import mmap
import shutil
import subprocess

import numpy as np
import pytest

import ptx_on_host
from jscc.kernels.sources import OPTIONS, entries_of, source_of

# The C library has a function `advance` too; calls inside a library stay inside.
FLAGS = (
    *("-x", "c++", "-std=c++17", "-O2", "-ffp-contract=off", "-fPIC", "-shared"),
    "-Wl,-Bsymbolic",
)
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")
KINDS = {
    "pointer": ctypes.c_void_p,
    "float32": ctypes.c_float,
    "uint32": ctypes.c_uint32,
    "uint64": ctypes.c_uint64,
}


class HostKernels:
    """Calls entries of compiled kernels with NumPy arrays as memory.

    Args:
        folder: Where libraries are built.
    """

    def __init__(self, folder):
        self.folder = folder
        self.libraries = {}

    def build(self, kernel, more=""):
        """The kernel's source as a shared library; `more` is C++ behind it."""
        source = self.folder / f"{kernel}-{len(self.libraries)}.cu"
        source.write_text(source_of(kernel) + more)
        built = source.with_suffix(".so")
        subprocess.run(["g++", *FLAGS, *WARNINGS, "-o", built, source], check=True)
        return built

    def library(self, kernel, more=""):
        """The same, loaded; built once."""
        key = (kernel, more)
        if key not in self.libraries:
            self.libraries[key] = ctypes.CDLL(str(self.build(kernel, more)))
        return self.libraries[key]

    def start(self, kernel, arguments, *, entry=None, threads=1):
        """Run `entry`, by default named like its kernel, as so many threads one after the other.

        Args:
            kernel: Folder of the source.
            arguments: By name; an array is passed as the address of its memory.
            entry: Function to start.
            threads: Of the grid.
        """
        parameters = entries_of(kernel)[entry or kernel]
        assert set(arguments) == {parameter.name for parameter in parameters}
        values = [address(arguments[parameter.name]) for parameter in parameters]
        types = [KINDS[parameter.kind] for parameter in parameters]
        self.start_with(kernel, entry or kernel, values, types, threads)

    def start_with(self, kernel, entry, values, types, threads):
        """The same with arguments by position."""
        library = self.library(kernel)
        function = getattr(library, entry)
        function.restype, function.argtypes = None, types
        library.play_thread.argtypes = [ctypes.c_uint64, ctypes.c_uint64]
        for thread in reversed(range(threads)):
            library.play_thread(thread, threads)
            function(*values)


class PtxKernels(HostKernels):
    """The same with what a device's compiler makes of the sources."""

    def build(self, kernel, more=""):
        source = self.folder / f"{kernel}-{len(self.libraries)}.cu"
        source.write_text(source_of(kernel) + more)
        ptx, translated = source.with_suffix(".ptx"), source.with_suffix(".cpp")
        command = ["nvcc", "-ptx", *OPTIONS, "-arch=compute_90"]
        subprocess.run([*command, "-o", ptx, source], check=True)
        translated.write_text(ptx_on_host.translate(ptx.read_text()))
        built = source.with_suffix(".so")
        flags = (*FLAGS, *ptx_on_host.FLAGS)
        subprocess.run(["g++", *flags, "-o", built, translated], check=True)
        return built


def guarded(array):
    """A copy of `array` right before a page that nobody may touch: what strays ends the process."""
    page = mmap.PAGESIZE
    size = -(-array.nbytes // page) * page
    memory = mmap.mmap(-1, size + page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    library = ctypes.CDLL(None, use_errno=True)
    library.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    assert library.mprotect(start + size, page, 0) == 0
    view = np.frombuffer(memory, array.dtype, array.size, size - array.nbytes)
    view = view.reshape(array.shape)
    view[...] = array
    return view


def address(value):
    """What C gets for `value`."""
    if isinstance(value, np.ndarray):
        assert value.flags.c_contiguous
        return value.ctypes.data
    return value


def make_host(tmp_path_factory, kind=HostKernels):
    """The kernels on this machine's processor, or a skip."""
    for program in ("g++", "nvcc")[: 2 if kind is PtxKernels else 1]:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not on this machine")
    return kind(tmp_path_factory.mktemp("kernels"))


class LaterHost:
    """The same, compiled when something is launched; a skip then where nothing compiles."""

    def __init__(self, tmp_path_factory):
        self.factory, self.host = tmp_path_factory, None

    def start_with(self, *given):
        self.host = self.host or make_host(self.factory)
        self.host.start_with(*given)
