"""Fake cuda-python: NVRTC's answers as recorded from release 13.0, and a driver on this host.

Every function has the name, the arguments and the returned tuple of the real one, which
tests/runtime/device/test_bindings.py compares where cuda-python is installed. Memory is the host's,
each block with its bounds; a launch runs the kernel's own source, compiled for the host.
"""

import ctypes
import enum
import json
import threading
from dataclasses import dataclass, field

from jscc.kernels.sources import KERNELS, entries_of
from jscc.runtime.device.bindings import Cuda

ELF = b"\x7fELF\x02\x01\x01A"  # how the cubins of NVRTC 13.0 begin
ARCHITECTURES = (75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121)
LOG = (
    b'broken.cu(1): error: identifier "x" is undefined\n'
    b'  extern "C" __global__ void k(int*a){*a=x;}\n'
    b"                                         ^\n\n"
    b'1 error detected in the compilation of "broken.cu".\n\0'
)


class Result(enum.IntEnum):
    """nvrtcResult, those that are returned here."""

    NVRTC_SUCCESS = 0
    NVRTC_ERROR_OUT_OF_MEMORY = 1
    NVRTC_ERROR_INVALID_OPTION = 5
    NVRTC_ERROR_COMPILATION = 6
    NVRTC_ERROR_BUILTIN_OPERATION_FAILURE = 7


class Status(enum.IntEnum):
    """CUresult, those that are returned here."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_INVALID_IMAGE = 200
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209
    CUDA_ERROR_NOT_FOUND = 500
    CUDA_ERROR_ILLEGAL_ADDRESS = 700


class Attribute(enum.IntEnum):
    """CUdevice_attribute, those that are asked for."""

    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76


@dataclass
class Program:
    """What NVRTC makes of a source."""

    source: bytes
    name: bytes
    cubin: bytes = b""
    destroyed: bool = False


@dataclass
class FakeNvrtc:
    """The module ``cuda.bindings.nvrtc``; counts what it compiles."""

    version: tuple = (13, 0)
    programs: list = field(default_factory=list)
    options: list = field(default_factory=list)

    def nvrtcVersion(self):
        return (Result.NVRTC_SUCCESS, *self.version)

    def nvrtcGetSupportedArchs(self):
        return Result.NVRTC_SUCCESS, list(ARCHITECTURES)

    def nvrtcCreateProgram(self, src, name, numHeaders, headers, includeNames):
        assert isinstance(src, bytes)
        assert isinstance(name, bytes)
        assert (numHeaders, headers, includeNames) == (0, [], [])
        self.programs.append(Program(src, name))
        return Result.NVRTC_SUCCESS, self.programs[-1]

    def nvrtcCompileProgram(self, prog, numOptions, options):
        assert numOptions == len(options)
        assert all(isinstance(option, bytes) for option in options)
        self.options.append(options)
        architecture = next(each for each in options if each.startswith(b"--gpu-architecture=sm_"))
        if prog.name == b"broken.cu":
            return (Result.NVRTC_ERROR_COMPILATION,)
        kernel = prog.name.decode().removesuffix(".cu")
        what = {"kernel": kernel, "architecture": architecture.decode().rpartition("_")[2]}
        prog.cubin = ELF + json.dumps(what).encode()
        return (Result.NVRTC_SUCCESS,)

    def nvrtcGetProgramLogSize(self, prog):
        return Result.NVRTC_SUCCESS, len(LOG)

    def nvrtcGetProgramLog(self, prog, log):
        log[:] = LOG
        return (Result.NVRTC_SUCCESS,)

    def nvrtcGetCUBINSize(self, prog):
        return Result.NVRTC_SUCCESS, len(prog.cubin)

    def nvrtcGetCUBIN(self, prog, cubin):
        assert len(cubin) == len(prog.cubin)
        cubin[:] = prog.cubin
        return (Result.NVRTC_SUCCESS,)

    def nvrtcDestroyProgram(self, prog):
        assert not prog.destroyed
        prog.destroyed = True
        return (Result.NVRTC_SUCCESS,)


class FakeDriver:
    """The module ``cuda.bindings.driver`` with one device.

    Args:
        host: Runs what is launched.
        capability: Of the device.
        name: Of the device.
        version: Of the driver.
    """

    CUdevice_attribute = Attribute

    def __init__(self, host=None, capability=(9, 0), name=b"Fake H1", version=13000):
        self.host, self.capability, self.name, self.version = host, capability, name, version
        self.blocks = {}
        self.failures = {}  # by function: the status it returns instead, once
        self.launches = []
        self.loaded = []
        self.retained = 0
        self.local = threading.local()

    def _status(self, function, *, context=True):
        """What `function` returns first."""
        if function in self.failures:
            return self.failures.pop(function)
        if context and getattr(self.local, "context", None) != "context":
            return Status.CUDA_ERROR_INVALID_CONTEXT
        return Status.CUDA_SUCCESS

    def cuInit(self, Flags):
        return (self._status("cuInit", context=False),)

    def cuDriverGetVersion(self):
        return Status.CUDA_SUCCESS, self.version

    def cuDeviceGetCount(self):
        return Status.CUDA_SUCCESS, 1

    def cuDeviceGet(self, ordinal):
        return Status.CUDA_SUCCESS, ordinal

    def cuDeviceGetName(self, length, dev):
        return Status.CUDA_SUCCESS, self.name.ljust(length, b"\0")

    def cuDeviceGetAttribute(self, attrib, dev):
        first = Attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        return Status.CUDA_SUCCESS, self.capability[attrib - first]

    def cuDevicePrimaryCtxRetain(self, dev):
        self.retained += 1
        return Status.CUDA_SUCCESS, "context"

    def cuDevicePrimaryCtxRelease(self, dev):
        self.retained -= 1
        return (Status.CUDA_SUCCESS,)

    def cuCtxSetCurrent(self, ctx):
        self.local.context = ctx
        return (Status.CUDA_SUCCESS,)

    def cuCtxSynchronize(self):
        return (self._status("cuCtxSynchronize"),)

    def cuMemAlloc(self, bytesize):
        status = self._status("cuMemAlloc")
        if status:
            return status, None
        if bytesize == 0:
            return Status.CUDA_ERROR_INVALID_VALUE, None
        block = (ctypes.c_char * (bytesize + 256))()
        pointer = (ctypes.addressof(block) + 255) // 256 * 256
        self.blocks[pointer] = (block, bytesize)
        return status, pointer

    def cuMemFree(self, dptr):
        del self.blocks[dptr]
        return (self._status("cuMemFree"),)

    def cuMemcpyHtoD(self, dstDevice, srcHost, ByteCount):
        assert ByteCount <= self.blocks[dstDevice][1]
        ctypes.memmove(dstDevice, srcHost, ByteCount)
        return (self._status("cuMemcpyHtoD"),)

    def cuMemcpyDtoH(self, dstHost, srcDevice, ByteCount):
        assert ByteCount <= self.blocks[srcDevice][1]
        ctypes.memmove(dstHost, srcDevice, ByteCount)
        return (self._status("cuMemcpyDtoH"),)

    def cuModuleLoadData(self, image):
        status = self._status("cuModuleLoadData")
        if status:
            return status, None
        if not image.startswith(ELF):
            return Status.CUDA_ERROR_INVALID_IMAGE, None
        what = json.loads(image[len(ELF) :])
        if what["architecture"] != "{}{}".format(*self.capability):
            return Status.CUDA_ERROR_NO_BINARY_FOR_GPU, None
        self.loaded.append(what["kernel"])
        return status, what["kernel"]

    def cuModuleGetFunction(self, hmod, name):
        entry = name.decode()
        if hmod not in KERNELS or entry not in entries_of(hmod):
            return Status.CUDA_ERROR_NOT_FOUND, None
        return self._status("cuModuleGetFunction"), (hmod, entry)

    def cuLaunchKernel(
        self,
        f,
        gridDimX,
        gridDimY,
        gridDimZ,
        blockDimX,
        blockDimY,
        blockDimZ,
        sharedMemBytes,
        hStream,
        kernelParams,
        extra,
    ):
        assert gridDimX * gridDimY * gridDimZ * blockDimX > 0
        assert (gridDimY, gridDimZ, blockDimY, blockDimZ) == (1, 1, 1, 1)
        assert (sharedMemBytes, hStream, extra) == (0, 0, 0)
        kernel, entry = f
        values, types = kernelParams
        assert isinstance(values, tuple)
        assert isinstance(types, tuple)
        assert len(values) == len(types) == len(entries_of(kernel)[entry])
        self.launches.append((entry, gridDimX, blockDimX))
        status = self._status("cuLaunchKernel")
        if status == Status.CUDA_SUCCESS:
            self.host.start_with(kernel, entry, values, list(types), gridDimX * blockDimX)
        return (status,)


def make_cuda(host=None, **device):
    """Both modules; `device` as for `FakeDriver`."""
    return Cuda(FakeDriver(host, **device), FakeNvrtc())
