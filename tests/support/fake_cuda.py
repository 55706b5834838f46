"""Fake cuda-python: NVRTC's answers as recorded from release 13.0, and a driver on this host.

Every function has the name, the arguments and the returned tuple of the real one, which
tests/runtime/device/test_bindings.py compares where cuda-python is installed. Memory is the host's,
each block with its bounds. What is given to a stream waits until somebody waits for that stream, so
what is read too early is not there yet, and what is freed too early is missed. A launch runs the
kernel's own source, compiled for the host.
"""

import ctypes
import enum
import itertools
import json
import threading
from dataclasses import dataclass, field
from types import SimpleNamespace

from jscc.kernels.sources import KERNELS, entries_of
from jscc.runtime.device.bindings import Cuda

POINTER = ctypes.c_void_p
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
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901


class Attribute(enum.IntEnum):
    """CUdevice_attribute, those that are asked for."""

    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76


class CaptureMode(enum.IntEnum):
    """CUstreamCaptureMode."""

    CU_STREAM_CAPTURE_MODE_GLOBAL = 0
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1
    CU_STREAM_CAPTURE_MODE_RELAXED = 2


@dataclass
class Program:
    """What NVRTC makes of a source."""

    source: bytes
    name: bytes
    cubin: bytes = b""
    destroyed: bool = False


@dataclass(eq=False)
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
    """The module ``cuda.bindings.driver``.

    Args:
        host: Runs what is launched.
        capability: Of the devices.
        name: Of the devices.
        version: Of the driver.
        memory: Bytes that there are.
        devices: How many there are.

    Attributes:
        blocks: Memory that is held, by address.
        streams: What each stream has yet to do.
        failures: By function, the status that it returns instead, once.
        status: What every function returns while it is no success.
        copies: Kind and bytes of each copy that was asked for.
        launches: Entry, blocks and threads of each kernel that was started.
        captured: Graphs that are held: what each is made of.
        replays: How often a graph was launched.
        events: Those that are held.
    """

    CUDA_VERSION = 13000
    CUdevice_attribute = Attribute
    CUstreamCaptureMode = CaptureMode
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)

    def __init__(
        self,
        host=None,
        capability=(9, 0),
        name=b"Fake H1",
        version=13000,
        memory=1 << 30,
        devices=1,
    ):
        self.host, self.capability, self.name, self.version = host, capability, name, version
        self.memory, self.devices = memory, devices
        self.blocks = {}
        self.streams = {}
        self.capturing = {}
        self.captured = {}
        self.events = {}
        self.replays = 0
        self.failures = {}
        self.status = Status.CUDA_SUCCESS
        self.copies = []
        self.launches = []
        self.loaded = []
        self.retained = 0
        self.numbers = itertools.count(1)
        self.local = threading.local()
        self.playing = threading.Lock()  # a compiled kernel plays one thread at a time

    def _status(self, function, *, context=True):
        """What `function` returns first."""
        if self.status:
            return self.status
        if function in self.failures:
            return self.failures.pop(function)
        if context and getattr(self.local, "context", None) != "context":
            return Status.CUDA_ERROR_INVALID_CONTEXT
        return Status.CUDA_SUCCESS

    def put(self, stream, work):
        """Let a stream, or the graph that is made of it, do `work` when its turn comes."""
        stream = int(stream)
        if stream in self.capturing:
            self.capturing[stream].append(work)
        else:
            self.streams[stream].append(work)

    def check(self, address, size):
        """Hold what is touched to the memory that is held."""
        assert any(
            start <= address and address + size <= start + held
            for start, (_, held) in self.blocks.copy().items()
        ), f"{size} bytes at {address} are nobody's"

    def cuInit(self, Flags):
        return (self._status("cuInit", context=False),)

    def cuDriverGetVersion(self):
        return Status.CUDA_SUCCESS, self.version

    def cuDeviceGetCount(self):
        return Status.CUDA_SUCCESS, self.devices

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

    def cuStreamCreate(self, Flags):
        status = self._status("cuStreamCreate")
        if status:
            return status, None
        assert Flags == 1
        stream = next(self.numbers)
        self.streams[stream] = []
        return status, stream

    def cuStreamSynchronize(self, hStream):
        status = self._status("cuStreamSynchronize")
        if hStream in self.capturing:
            return (Status.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)
        work, self.streams[hStream] = self.streams[hStream], []
        for each in work:
            each()
        return (status,)

    def cuStreamDestroy(self, hStream):
        assert self.streams.pop(hStream) == [], "a stream with work left"
        return (self._status("cuStreamDestroy"),)

    def cuMemAlloc(self, bytesize):
        status = self._status("cuMemAlloc")
        if status:
            return status, None
        if bytesize == 0:
            return Status.CUDA_ERROR_INVALID_VALUE, None
        if bytesize > self.memory - sum(size for _, size in self.blocks.copy().values()):
            return Status.CUDA_ERROR_OUT_OF_MEMORY, None
        block = (ctypes.c_char * (bytesize + 256))()
        ctypes.memset(block, 0xEE, bytesize + 256)  # nobody may count on zeros
        pointer = (ctypes.addressof(block) + 255) // 256 * 256
        self.blocks[pointer] = (block, bytesize)
        return status, pointer

    def cuMemFree(self, dptr):
        del self.blocks[dptr]
        return (self._status("cuMemFree"),)

    def _copy(self, kind, to, source, size, stream, held):
        """One of the three; `held` are the addresses on the device."""
        status = self._status(f"cuMemcpy{kind}Async")
        if status:
            return (status,)
        for address in held:
            self.check(address, size)
        self.copies.append((kind, size))

        def copy():
            for address in held:
                self.check(address, size)
            ctypes.memmove(to, source, size)

        self.put(stream, copy)
        return (status,)

    def cuMemcpyHtoDAsync(self, dstDevice, srcHost, ByteCount, hStream):
        return self._copy("HtoD", dstDevice, srcHost, ByteCount, hStream, (dstDevice,))

    def cuMemcpyDtoHAsync(self, dstHost, srcDevice, ByteCount, hStream):
        return self._copy("DtoH", dstHost, srcDevice, ByteCount, hStream, (srcDevice,))

    def cuMemcpyDtoDAsync(self, dstDevice, srcDevice, ByteCount, hStream):
        held = (dstDevice, srcDevice)
        return self._copy("DtoD", dstDevice, srcDevice, ByteCount, hStream, held)

    def cuMemsetD8Async(self, dstDevice, uc, N, hStream):
        def fill():
            self.check(dstDevice, N)
            ctypes.memset(dstDevice, uc, N)

        self.put(hStream, fill)
        return (self._status("cuMemsetD8Async"),)

    def cuStreamBeginCapture(self, hStream, mode):
        status = self._status("cuStreamBeginCapture")
        assert mode == CaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        assert hStream not in self.capturing
        if not status:
            self.capturing[hStream] = []
        return (status,)

    def cuStreamEndCapture(self, hStream):
        status = self._status("cuStreamEndCapture")
        work = self.capturing.pop(hStream)
        if status:
            return status, None
        return status, self._graph(work)

    def _graph(self, work):
        number = next(self.numbers)
        self.captured[number] = work
        return number

    def cuGraphInstantiate(self, hGraph, flags):
        assert flags == 0
        status = self._status("cuGraphInstantiate")
        return status, None if status else self._graph(self.captured[hGraph])

    def cuGraphLaunch(self, hGraphExec, hStream):
        status = self._status("cuGraphLaunch")
        if not status:
            self.replays += 1
            for work in self.captured[hGraphExec]:
                self.put(hStream, work)
        return (status,)

    def cuGraphDestroy(self, hGraph):
        del self.captured[hGraph]
        return (self._status("cuGraphDestroy"),)

    def cuGraphExecDestroy(self, hGraphExec):
        del self.captured[hGraphExec]
        return (self._status("cuGraphExecDestroy"),)

    def cuEventCreate(self, Flags):
        event = next(self.numbers)
        self.events[event] = None
        return self._status("cuEventCreate"), event

    def cuEventRecord(self, hEvent, hStream):
        def record():
            self.events[hEvent] = float(next(self.numbers))

        self.put(hStream, record)
        return (self._status("cuEventRecord"),)

    def cuEventElapsedTime(self, hStart, hEnd):
        return self._status("cuEventElapsedTime"), self.events[hEnd] - self.events[hStart]

    def cuEventDestroy(self, hEvent):
        del self.events[hEvent]
        return (self._status("cuEventDestroy"),)

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
        assert (sharedMemBytes, extra) == (0, 0)
        kernel, entry = f
        values, types = kernelParams
        assert isinstance(values, tuple)
        assert isinstance(types, tuple)
        assert len(values) == len(types) == len(entries_of(kernel)[entry])
        self.launches.append((entry, gridDimX, blockDimX))
        status = self._status("cuLaunchKernel")

        def run():
            pointers = [value for value, kind in zip(values, types, strict=True) if kind is POINTER]
            for pointer in filter(None, pointers):
                self.check(pointer, 1)
            with self.playing:
                self.host.start_with(kernel, entry, values, list(types), gridDimX * blockDimX)

        if status == Status.CUDA_SUCCESS:
            self.put(hStream, run)
        return (status,)


def make_cuda(host=None, **device):
    """Both modules; `device` as for `FakeDriver`."""
    return Cuda(FakeDriver(host, **device), FakeNvrtc())
