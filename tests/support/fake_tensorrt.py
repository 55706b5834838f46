"""Fake TensorRT: it computes with ONNX Runtime, and fails in the libraries' own words.

Runs wait until their stream of a fake device is waited for, see `fake_cuda`. `WORDS` are what
TensorRT 10, TensorRT for RTX 1.7 and their users' logs say.
"""

import ctypes
import enum
import json
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime

from fake_cuda import make_cuda

WORDS = {
    "memory": "[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)",
    "version": "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization "
    "assertion stdVersionRead == kSERIALIZATION_VERSION failed.Version tag does not match. Note: "
    "Current Version: 237, Serialized Engine Version: 239)",
    "device": "The engine plan file is generated on an incompatible device, expecting compute 8.6 "
    "got compute 7.5, please rebuild.",
    "plan": "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion "
    "plan.header.size == blobSize failed. In parsePlan at /_src/runtime/dispatch/runtime.cpp:780)",
    "cuda": "CUDA initialization failure with error: 35. Please check your CUDA installation",
    "node": "This version of TensorRT doesn't support mode than 1 outputs for MaxPool nodes!",
    "compiler": "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([myelin_graph.h:1295: "
    "attachExceptionMsgToGraph] MyelinCheckException: cuda_codegen.cpp:5652: CHECK_GE(crds.size(), "
    "input_dims.size()) failed.\n  LHS: 3\n  RHS: 4\n In compileGraph at codeGenerator.cpp:2012)",
    "tactic": "IBuilder::buildSerializedNetwork: Error Code 10: Internal Error (Could not find any "
    "implementation for node {ForeignNode[/1/Constant_36_output_0.../1/Slice_4]}.)",
    "cancel": "IBuilder::buildSerializedNetwork: Error Code 7: BuildCanceled (Build canceled by "
    "user In next at /_src/optimizer/common/scopedProgressReporter.cpp:92)",
    "shape": "IExecutionContext::setInputShape: Error Code 3: API Usage Error (Parameter check "
    "failed, condition: engineDims.d[i] == dims.d[i].)",
}
MAGIC = b"fake plan\n"


class Severity(enum.IntEnum):
    """How bad a line of the log is."""

    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class DataType(enum.Enum):
    """The library's names, and numpy's."""

    FLOAT = "float32"
    HALF = "float16"
    INT64 = "int64"
    INT32 = "int32"
    UINT8 = "uint8"
    BOOL = "bool"


class ComputeCapability(enum.Enum):
    """What RTX compiles for."""

    NONE = 0
    CURRENT = 1
    SM86 = 86
    SM89 = 89
    SM120 = 120


class ILogger:
    """What a logger is derived from."""

    Severity = Severity

    def log(self, severity, text):
        raise NotImplementedError


class IProgressMonitor:
    """What a monitor is derived from."""


class FakeTensorRt:
    """A module ``tensorrt`` of `version`, or ``tensorrt_rtx``, on a fake device's `cuda`.

    Attributes:
        faults: Words that the next calls of a kind fail with, by kind: ``builder``, ``runtime``,
            ``build``, ``load``, ``context``, ``run``.
        building: Called in the middle of each build.
        loaded: How many engines it deserialised.
        refused: Op types that its parser does not take.
        told: What it was asked to build: one dict for each engine.
    """

    ILogger = ILogger
    IProgressMonitor = IProgressMonitor
    DataType = DataType
    BuilderFlag = SimpleNamespace(TF32="tf32")
    ExecutionContextAllocationStrategy = SimpleNamespace(ON_PROFILE_CHANGE="on profile change")

    def __init__(self, cuda, version="10.3.0", *, rtx=False, strong_flag=True):
        self.__version__ = version
        self.cuda = cuda
        self.rtx = rtx
        self.faults = {}
        self.refused = ()
        self.told = []
        self.building = lambda: None
        self.loaded = 0
        flags = SimpleNamespace(STRONGLY_TYPED=1) if strong_flag else SimpleNamespace()
        self.NetworkDefinitionCreationFlag = flags
        if rtx:
            self.ComputeCapability = ComputeCapability
        newer = rtx or tuple(map(int, version.split(".")[:2])) >= (10, 13)
        self._parser = type("OnnxParser", (_NewParser if newer else _Parser,), {})

    def Builder(self, log):
        return self._start(_Builder, "builder", log)

    def OnnxParser(self, network, log):
        return self._parser(self, network, log)

    def Runtime(self, log):
        return self._start(_Runtime, "runtime", log)

    def _start(self, kind, name, log):
        """The bindings' answer to a null pointer is a TypeError."""
        if self.fails(name, log, Severity.WARNING):
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return kind(self, log)

    def fails(self, kind, log, severity=Severity.ERROR):
        """Whether this call of a kind fails, said in the log."""
        words = self.faults.get(kind)
        if not words:
            return False
        log.log(severity, words.pop(0))
        return True


class _Builder:
    def __init__(self, module, log):
        self.module = module
        self.log = log

    def create_network(self, flags):
        return _Network(flags)

    def create_builder_config(self):
        return _Config()

    def create_optimization_profile(self):
        return _Profile()

    def build_serialized_network(self, network, config):
        monitor = config.progress_monitor
        monitor.phase_start("Building engine", None, 2)
        monitor.phase_start("Timing tactics", "Building engine", 4)
        going = [monitor.step_complete("Timing tactics", step) for step in range(4)]
        self.module.building()
        monitor.phase_finish("Timing tactics")
        monitor.phase_finish("Building engine")
        if not all(going):
            self.log.log(Severity.ERROR, WORDS["cancel"])
            return None
        if self.module.fails("build", self.log):
            return None
        told = {
            "flags": network.flags,
            "profiles": config.profiles,
            "target": config.target,
            "tf32": config.tf32,
            "timings": config.timings,
            "version": self.module.__version__,
        }
        self.module.told.append(told)
        return MAGIC + json.dumps(told).encode() + b"\n" + network.model.SerializeToString()


class _Network:
    num_layers = 3

    def __init__(self, flags):
        self.flags = flags
        self.model = None

    @property
    def num_inputs(self):
        return len(self.model.graph.input)

    @property
    def num_outputs(self):
        return len(self.model.graph.output)

    def get_input(self, index):
        return _tensor(self.model.graph.input[index])

    def get_output(self, index):
        return _tensor(self.model.graph.output[index])


def _tensor(value):
    kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    return SimpleNamespace(name=value.name, dtype=DataType(str(kind)), is_shape_tensor=False)


class _Config:
    progress_monitor = None

    def __init__(self):
        self.profiles = []
        self.target = None
        self.tf32 = True
        self.timings = None
        self.num_compute_capabilities = 0

    def clear_flag(self, flag):
        assert flag == "tf32"
        self.tf32 = False

    def set_compute_capability(self, kind, index):
        assert index < self.num_compute_capabilities
        self.target = kind.name
        return True

    def add_optimization_profile(self, profile):
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1

    def create_timing_cache(self, data):
        return SimpleNamespace(serialize=lambda: b"timed " + data, data=data)

    def set_timing_cache(self, cache, ignore_mismatch):
        assert not ignore_mismatch
        self.timings = cache.data.decode()
        return True


class _Profile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, least, best, most):
        self.shapes[name] = [list(least), list(best), list(most)]


class _Parser:
    """Of TensorRT before 10.13: weights lie in files."""

    def __init__(self, module, network, log):
        self.module = module
        self.network = network
        self.log = log
        self.errors = []

    @property
    def num_errors(self):
        return len(self.errors)

    def get_error(self, index):
        return self.errors[index]

    def parse(self, data, path=None):
        try:
            model = onnx.load_model_from_string(data)
        except Exception:  # protobuf's own
            self.errors.append(_error("Assertion failed: Failed to parse the ONNX model.", None))
            return False
        if path is not None:
            folder = path.rpartition("/")[0]
            onnx.external_data_helper.load_external_data_for_model(model, folder)
        return self._take(model)

    def _take(self, model):
        refused = [n for n in model.graph.node if n.op_type in self.module.refused]
        self.errors += [_error(WORDS["node"], node) for node in refused]
        self.network.model = model
        return not refused


class _NewParser(_Parser):
    """Weights are handed over."""

    model = None

    def load_model_proto(self, data):
        self.model = onnx.load_model_from_string(data)
        return True

    def load_initializer(self, name, address, size):
        (tensor,) = (each for each in self.model.graph.initializer if each.name == name)
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.DEFAULT
        tensor.raw_data = ctypes.string_at(address, size)
        return True

    def parse_model_proto(self):
        return self._take(self.model)


def _error(words, node):
    return SimpleNamespace(
        desc=lambda: words,
        node_name=lambda: node.name if node else "",
        node_operator=lambda: node.op_type if node else "",
        node=lambda: 0,
    )


class _Runtime:
    def __init__(self, module, log):
        self.module = module
        self.log = log

    def deserialize_cuda_engine(self, data):
        data = bytes(data)
        if self.module.fails("load", self.log):
            return None
        if not data.startswith(MAGIC):
            self.log.log(Severity.ERROR, WORDS["plan"])
            return None
        head, _, model = data.removeprefix(MAGIC).partition(b"\n")
        told = json.loads(head)
        if told["version"] != self.module.__version__:
            self.log.log(Severity.ERROR, WORDS["version"])
            return None
        self.module.loaded += 1
        return _Engine(self.module, self.log, told, onnx.load_model_from_string(model))


class _Engine:
    def __init__(self, module, log, told, model):
        self.module = module
        self.log = log
        self.told = told
        self.inputs = {each.name: _tensor(each) for each in model.graph.input}
        self.outputs = {each.name: _tensor(each) for each in model.graph.output}
        self.ranks = {each.name: len(each.type.tensor_type.shape.dim) for each in model.graph.input}
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )

    @property
    def num_io_tensors(self):
        return len(self.inputs) + len(self.outputs)

    def get_tensor_name(self, index):
        return [*self.inputs, *self.outputs][index]

    def get_tensor_dtype(self, name):
        return {**self.inputs, **self.outputs}[name].dtype

    def is_shape_inference_io(self, name):
        return False

    def create_execution_context(self, strategy):
        assert strategy == "on profile change"
        return None if self.module.fails("context", self.log) else _Context(self)


class _Context:
    def __init__(self, engine):
        self.engine = engine
        self.profile = 0
        self.shapes = {}
        self.addresses = {}

    def set_optimization_profile_async(self, index, stream):
        self.profile = index
        return index < len(self.engine.told["profiles"])

    def set_input_shape(self, name, shape):
        if len(shape) != self.engine.ranks[name]:
            self.engine.log.log(Severity.ERROR, WORDS["shape"])
            return False
        if self.engine.told["profiles"]:
            least, _, most = self.engine.told["profiles"][self.profile].get(name, (shape,) * 3)
            if any(not a <= s <= b for a, s, b in zip(least, shape, most, strict=True)):
                self.engine.log.log(Severity.ERROR, WORDS["shape"])
                return False
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def get_tensor_shape(self, name):
        zeros = {key: np.zeros(s, self._dtype(key)) for key, s in self.shapes.items()}
        return self.engine.session.run([name], zeros)[0].shape

    def execute_async_v3(self, stream):
        if self.engine.module.fails("run", self.engine.log):
            return False
        given = (dict(self.shapes), dict(self.addresses))  # as a captured graph keeps them
        self.engine.module.cuda.driver.put(stream, lambda: self._compute(*given))
        return True

    def _compute(self, shapes, addresses):
        fed = {
            name: self._at(name, shape, addresses).copy()
            for name, shape in shapes.items()
            if name in self.engine.inputs
        }
        for name, result in zip(
            self.engine.outputs, self.engine.session.run(None, fed), strict=True
        ):
            self._at(name, result.shape, addresses)[...] = result

    def _at(self, name, shape, addresses):
        dtype = np.dtype(self._dtype(name))
        size = int(np.prod(shape)) * dtype.itemsize
        self.engine.module.cuda.driver.check(addresses[name], size)
        memory = (ctypes.c_char * size).from_address(addresses[name])
        return np.frombuffer(memory, dtype).reshape(shape)

    def _dtype(self, name):
        return {**self.engine.inputs, **self.engine.outputs}[name].dtype.value


def make_device(host=None, **device):
    """A fake cuda-python with the device of these tests; see `fake_cuda.make_cuda`."""
    return make_cuda(host, **{"capability": (8, 9), "name": b"NVIDIA Fake", **device})


def install(monkeypatch, module, cuda):
    """Let imports find the fakes, and nothing else of their kind; None for nothing at all."""
    from jscc.runtime.device import device
    from jscc.runtime.tensorrt.library import load_library

    rtx = module is not None and module.rtx
    for name, fake in (
        ("tensorrt", None if rtx else module),
        ("tensorrt_rtx", module if rtx else None),
        ("cuda.bindings.driver", cuda and cuda.driver),
        ("cuda.bindings.nvrtc", cuda and cuda.nvrtc),
        ("cuda.cuda", None),
    ):
        monkeypatch.setitem(sys.modules, name, fake)
    load_library.cache_clear()
    device._first_of.cache_clear()
