"""Engines: the backends that a command line can choose, by name.

NOTE: each is imported when it is asked for; one may be missing on the machine.
"""

from collections.abc import Iterable, Sequence

from jscc.runtime.backends.base import Backend
from jscc.runtime.engine_names import DEFAULT, ENGINES, OPENVINO, TENSORRT
from jscc.runtime.errors import UnavailableError, UsageError
from jscc.runtime.machine import describe_machine

_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}  # instructions, of which one is enough


def make_backend(
    engine: str = DEFAULT, *, providers: Sequence[str] = ("cpu",), threads: int | None = None
) -> Backend:
    """The engine called `engine`.

    Args:
        engine: One of `ENGINES`.
        providers: Of ONNX Runtime, best first; other engines have none to choose from.
        threads: Of the processor, for each stage; None for all.

    Raises:
        UsageError: ``E_ENGINE``; ``E_PROVIDER``, a provider that the engine does not have.
        UnavailableError: ``E_MODULE``, it is not installed.
    """
    if engine == DEFAULT:
        from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend(providers=tuple(providers), threads=threads)
    if engine not in ENGINES:
        raise UsageError(
            "E_ENGINE", f"engine: got {engine!r}, expected one of {', '.join(ENGINES)}. Pick one."
        )
    if tuple(providers) != ("cpu",):
        raise UsageError(
            "E_PROVIDER",
            f"providers: got {', '.join(providers)} for {engine}, expected cpu, since providers "
            f"are those of {DEFAULT}. Leave one of the two out.",
        )
    if engine == TENSORRT:
        from jscc.runtime.backends.tensorrt import TensorRtBackend
        from jscc.runtime.terminal import notice

        return TensorRtBackend(threads=threads, tell=notice)
    from jscc.runtime.backends.openvino import OpenVinoBackend

    return OpenVinoBackend(threads=threads, precision=OPENVINO[engine])


def check_machine(engine: str) -> None:
    """Refuse an engine whose place another would take on this machine.

    Raises:
        UnavailableError: ``E_BFLOAT16``, the processor has none; ``E_MODULE`` or ``E_CUDA``,
            TensorRT or its device is missing.
    """
    if engine == TENSORRT:
        from jscc.runtime.backends.tensorrt import find_place

        find_place()
    if OPENVINO.get(engine) == "bf16":
        features = describe_machine().features
        if not _BFLOAT16 & set(features):
            raise UnavailableError(
                "E_BFLOAT16",
                f"engine {engine!r}: got a processor with {' '.join(features) or 'nothing known'}, "
                f"expected one of {', '.join(sorted(_BFLOAT16))}. Take openvino.",
            )


def ran_on(engine: str, providers: Iterable[str]) -> bool:
    """Whether an engine ran any stage itself, by what its stages ran on."""
    if engine in OPENVINO:
        return any(DEFAULT not in provider for provider in providers)
    return engine != TENSORRT or any("cuda" in provider for provider in providers)
