"""Parameters: how many trained numbers the graphs of a bundle hold."""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping

import onnx
from onnx import TensorProto, external_data_helper, numpy_helper

from jscc.runtime.bundle import Bundle
from jscc.runtime.sides import ENCODE

# What weights are stored as; whole numbers of other types are shapes, axes and positions.
_TRAINED = {
    *(TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE),
    *(TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4),
}

Weights = Counter[tuple[str, int]]  # identity, elements -> how often


def count_parameters(bundle: Bundle) -> dict[str, int]:
    """Parameters of the transmitter's stage and of all the receiver's stages.

    Single numbers are constants of the arithmetic and do not count. What several stages share
    (a network that is there with and without its gradient, both directions of one invertible
    network) counts once: tensors of one shape and content, as often as they are in one stage.
    """
    counts = {"transmitter": 0, "receiver": 0}
    receiver: Weights = Counter()
    for name in bundle.manifest.stages:
        weights = _weights(bundle, name)
        if name == ENCODE:
            counts["transmitter"] = _total(weights)
        else:
            receiver |= weights
    counts["receiver"] = _total(receiver)
    return counts


def _total(weights: Weights) -> int:
    return sum(elements * often for (_, elements), often in weights.items())


def _weights(bundle: Bundle, stage: str) -> Weights:
    model = onnx.load_model_from_string(bundle.graph(stage))
    external = bundle.external(stage)
    found: Weights = Counter()
    for tensor in model.graph.initializer:
        elements = math.prod(tensor.dims)
        if tensor.data_type in _TRAINED and elements > 1:
            identity = hashlib.sha256(f"{tensor.data_type}{list(tensor.dims)}".encode())
            identity.update(_data(tensor, external))
            found[identity.hexdigest(), elements] += 1
    return found


def _data(tensor: TensorProto, external: Mapping[str, memoryview]) -> bytes | memoryview:
    if not external_data_helper.uses_external_data(tensor):
        # Small tensors may be stored as numbers instead of bytes.
        return tensor.raw_data or numpy_helper.to_array(tensor).tobytes()
    place = {entry.key: entry.value for entry in tensor.external_data}
    begin, length = int(place.get("offset", 0)), int(place["length"])  # the bundle was checked
    return external[place["location"]][begin : begin + length]
