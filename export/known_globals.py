"""Known globals: what the names in a checkpoint's pickle mean, each by its exact name.

Nothing here is ever imported or called. `UNDERSTOOD` names become data, `HARMLESS` ones become
`Inert` stand-ins, and every other one stops the reading: as unsafe where it is code of Python,
torch or numpy, as unknown where it is somebody's class.
"""

import sys
from types import MappingProxyType

import torch

from jscc.export.pickles import Global

_STORAGE_NAMES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
}
_DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "complex128", "complex64", "bool"),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"),
)

STORAGES = MappingProxyType(
    {
        **{
            f"{package}.{name}Storage": dtype
            for package in ("torch", "torch.cuda")
            for name, dtype in _STORAGE_NAMES.items()
        },
        "torch.storage.UntypedStorage": torch.uint8,
    }
)
DTYPES = MappingProxyType({f"torch.{name}": getattr(torch, name) for name in _DTYPES})
REBUILDS = frozenset(
    {
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
    }
)
WRAPPERS = frozenset(
    {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}
)
TABLES = frozenset(
    {
        "collections.OrderedDict",
        "collections.defaultdict",
        "collections.Counter",
        "builtins.dict",
    }
)
LISTS = frozenset({"builtins.list", "builtins.set", "builtins.frozenset"})
UNDERSTOOD = frozenset(
    {
        *STORAGES,
        *DTYPES,
        *REBUILDS,
        *WRAPPERS,
        *TABLES,
        *LISTS,
        "torch._tensor._rebuild_from_type_v2",
        "torch.Size",
    }
)

_TORCH = {
    *("torch.device", "torch.Tensor", "torch.nn.parameter.Parameter", "torch.dtype"),
    *("torch.serialization._get_layout", "torch.storage.TypedStorage"),
    *(
        f"torch._utils._rebuild_{kind}"
        for kind in (
            *("sparse_tensor", "qtensor", "nested_tensor", "wrapper_subclass"),
            *(
                "meta_tensor_no_storage",
                "device_tensor_from_numpy",
                "device_tensor_from_cpu_tensor",
            ),
        )
    ),
    *("torch.per_tensor_affine", "torch.per_channel_affine"),
    *("torch.torch_version.TorchVersion",),
}
_PYTHON = {
    *(f"builtins.{name}" for name in ("int", "float", "complex", "bool", "str", "bytes")),
    *(f"builtins.{name}" for name in ("bytearray", "tuple", "object", "slice", "range")),
    *("_codecs.encode", "copyreg._reconstructor", "copyreg.__newobj__", "argparse.Namespace"),
    *("collections.deque", "functools.partial", "types.SimpleNamespace", "typing.Any"),
    *("typing.Dict", "typing.List", "typing.Tuple", "typing.Union", "typing.Optional"),
    *(f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")),
    *(
        f"{module}.{flavour}{system}Path"
        for module in ("pathlib", "pathlib._local")
        for flavour in ("", "Pure")
        for system in ("", "Posix", "Windows")
    ),
    *("decimal.Decimal", "fractions.Fraction", "uuid.UUID"),
}
_NUMPY = {
    *("numpy.dtype", "numpy.ndarray", "numpy.bool_", "numpy.bool"),
    *(f"numpy.{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    *(f"numpy.float{bits}" for bits in (16, 32, 64)),
    *(f"numpy.complex{bits}" for bits in (64, 128)),
    *(f"numpy.dtypes.{kind}{bits}DType" for kind in ("Int", "UInt") for bits in (8, 16, 32, 64)),
    *(f"numpy.dtypes.Float{bits}DType" for bits in (16, 32, 64)),
    *(
        f"numpy.{package}.multiarray.{name}"
        for package in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
    *(
        f"numpy.random._pickle.__{kind}_ctor"
        for kind in ("randomstate", "generator", "bit_generator")
    ),
    *(f"numpy.random._{kind.lower()}.{kind}" for kind in ("MT19937", "PCG64", "Philox", "SFC64")),
    "numpy.random.bit_generator.SeedSequence",
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence",
}
_LIGHTNING = {
    f"{package}.{name}"
    for package in ("pytorch_lightning", "lightning.pytorch")
    for name in (
        "callbacks.model_checkpoint.ModelCheckpoint",
        "callbacks.early_stopping.EarlyStopping",
        "callbacks.lr_monitor.LearningRateMonitor",
        "callbacks.progress.ProgressBar",
        "callbacks.progress.tqdm_progress.TQDMProgressBar",
        "callbacks.progress.rich_progress.RichProgressBar",
        "callbacks.gradient_accumulation_scheduler.GradientAccumulationScheduler",
        "callbacks.model_summary.ModelSummary",
        "callbacks.timer.Timer",
        "callbacks.stochastic_weight_avg.StochasticWeightAveraging",
        "utilities.parsing.AttributeDict",
    )
} | {
    "pytorch_lightning.callbacks.pt_callbacks.ModelCheckpoint",
    "pytorch_lightning.callbacks.pt_callbacks.EarlyStopping",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning_lite.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
}
_SETTINGS = {
    *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig"),
    *("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata", "omegaconf.base.Node"),
    *(
        f"omegaconf.nodes.{kind}Node"
        for kind in ("Any", "Boolean", "Float", "Integer", "String", "Path", "Bytes", "Enum")
    ),
    *("yacs.config.CfgNode", "easydict.EasyDict", "addict.addict.Dict", "munch.Munch"),
    "ml_collections.config_dict.config_dict.ConfigDict",
}

HARMLESS = frozenset({*_TORCH, *_PYTHON, *_NUMPY, *_LIGHTNING, *_SETTINGS})

_FOUNDATIONS = frozenset({"torch", "numpy", "torchvision", "pip", "setuptools", "pkg_resources"})
_PYTHON_2 = frozenset({"commands", "exceptions", "popen2", "urllib2", "os2", "imp"})


def is_code(name: Global) -> bool:
    """Whether `name`, on neither list, is code that comes with Python, torch or numpy.

    Payloads are made of such functions. A class of torch or numpy (its name begins with a
    capital) is the other case: somebody pickled a module or an optimizer.
    """
    package = name.module.split(".")[0]
    if package in sys.stdlib_module_names or package in _PYTHON_2:
        return True
    parts = name.name.split(".")
    if len(parts) > 1 and not all(part[:1].isupper() for part in parts):
        return True  # reaches through a module's own imports, as in "helpers.os.system"
    return package in _FOUNDATIONS and not parts[0][:1].isupper()
