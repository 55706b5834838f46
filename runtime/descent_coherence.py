"""Whether the parts of a descent fit together and to the tensors that are there when it runs.

Its stages are run on one tile: every dimension of their ports is a number, the first one is 1, and
what is cut from an image has the tile's size.
"""

from collections.abc import Mapping

from jscc.runtime.declared import refuse
from jscc.runtime.descent import GRADIENT, LOSS
from jscc.runtime.errors import BundleError
from jscc.runtime.manifest import Manifest, StageEntry
from jscc.runtime.manifest_loops import Descent, Round
from jscc.runtime.ports import Dim, Port, split_dim

FLOAT = "float32"


def check_descent(manifest: Manifest, name: str, feeds: Mapping[str, Port]) -> tuple[Port, ...]:
    """Hold the descent called `name` to its stages and to the named tensors `feeds`.

    Returns:
        What it adds to the named tensors.

    Raises:
        BundleError: ``E_BUNDLE_INCONSISTENT`` naming the JSON pointer.
    """
    descent, pointer = manifest.descents[name], f"/descents/{name}"
    for stage in descent.stages:
        _check_static(f"/stages/{stage}", manifest.stages[stage])
    at_hand = {
        key: port
        for key, port in _inputs(manifest, descent).items()
        if key in descent.variables and descent.variables[key].start == "normal"
    }
    at_hand |= {setting: Port(setting, FLOAT, (1,)) for setting in descent.settings}
    given = {key: _tile_of(port, manifest.image.tile) for key, port in feeds.items()}
    for key in at_hand:
        if key in given:
            raise _clash(pointer, repr(key), "a name that nothing else has")
    given |= at_hand
    for index, each in enumerate(descent.rounds):
        _check_round(manifest, descent, each, f"{pointer}/rounds/{index}", given)
    missing = sorted(set(descent.variables) - set(given))
    if missing:
        raise _clash(f"{pointer}/variables", f"{missing}", "variables that begin somewhere")
    for key, variable in descent.variables.items():
        if variable.sphere >= len(given[key].shape):
            got, shape = f"{variable.sphere}", given[key]
            raise _clash(
                f"{pointer}/variables/{key}/sphere", got, f"fewer than the axes of {shape}"
            )
    render = manifest.stages[descent.render]
    _check_fed(f"/stages/{descent.render}", render, given)
    return tuple(_image_of(port, manifest, descent.render) for port in render.outputs)


def _clash(pointer: str, got: str, expected: str) -> BundleError:
    return refuse(pointer, got, expected, "E_BUNDLE_INCONSISTENT")


def _inputs(manifest: Manifest, descent: Descent) -> dict[str, Port]:
    return {port.name: port for stage in descent.stages for port in manifest.stages[stage].inputs}


def _check_static(pointer: str, stage: StageEntry) -> None:
    if stage.tiled:
        raise _clash(f"{pointer}/tiled", "true", "false: a descent runs on one tile anyway")
    for side, ports in (("inputs", stage.inputs), ("outputs", stage.outputs)):
        for index, port in enumerate(ports):
            numbers = all(isinstance(dim, int) for dim in port.shape)
            if port.dtype != FLOAT or not numbers or port.shape[:1] != (1,):
                expected = f"{FLOAT}, all dimensions numbers, the first 1"
                raise _clash(f"{pointer}/{side}/{index}", f"{port.name!r} {port}", expected)


def _check_round(
    manifest: Manifest, descent: Descent, each: Round, pointer: str, given: dict[str, Port]
) -> None:
    """Follow the tensors through one round; what `before` makes is added to `given`."""
    if each.before is not None:
        stage = manifest.stages[each.before]
        _check_fed(f"/stages/{each.before}", stage, given)
        for port in stage.outputs:
            variable = descent.variables.get(port.name)
            if variable is None or variable.start != "stage":
                expected = "variables that start with 'stage'"
                raise _clash(f"{pointer}/before", repr(port.name), expected)
            given[port.name] = port
    stage = manifest.stages[each.gradient]
    _check_fed(f"/stages/{each.gradient}", stage, given)
    outputs = {port.name: port for port in stage.outputs}
    if outputs.pop(LOSS, None) != Port(LOSS, FLOAT, (1,)) or not outputs:
        got = ", ".join(f"{port.name} {port}" for port in stage.outputs)
        raise _clash(
            f"/stages/{each.gradient}/outputs", got, f"{LOSS} {FLOAT}[1] and a gradient or more"
        )
    moved = {port.name: port for port in stage.inputs if port.name in descent.variables}
    for name, port in outputs.items():
        variable_port = moved.get(name.removeprefix(GRADIENT))
        fits = variable_port is not None and variable_port.shape == port.shape
        if not (name.startswith(GRADIENT) and fits):
            expected = f"{GRADIENT}V shaped like the input V, for a variable V of {sorted(moved)}"
            raise _clash(f"/stages/{each.gradient}/outputs", f"{name!r} {port}", expected)


def _check_fed(pointer: str, stage: StageEntry, given: Mapping[str, Port]) -> None:
    for index, port in enumerate(stage.inputs):
        feed = given.get(port.name)
        if feed is None:
            raise _clash(f"{pointer}/inputs/{index}", repr(port.name), f"one of {sorted(given)}")
        if feed.dtype != port.dtype or feed.shape != port.shape:
            raise _clash(f"{pointer}/inputs/{index}", f"{port.name!r} {port}", f"{feed}")


def _tile_of(port: Port, tile: int) -> Port:
    """What of a named tensor a stage gets for one image and one tile."""
    shape: tuple[Dim, ...] = tuple(_on_tile(dim, tile) for dim in port.shape)
    return Port(port.name, port.dtype, shape)


def _on_tile(dim: Dim, tile: int) -> Dim:
    if isinstance(dim, int):
        return dim
    symbol, divisor = split_dim(dim)
    return 1 if symbol == "batch" else tile // divisor


def _image_of(port: Port, manifest: Manifest, stage: str) -> Port:
    """The named tensor that rendered tiles are joined to."""
    tile = manifest.image.tile
    if len(port.shape) != 4 or port.shape[2:] != (tile, tile):
        raise _clash(
            f"/stages/{stage}/outputs", f"{port.name!r} {port}", f"{FLOAT}[1,N,{tile},{tile}]"
        )
    return Port(port.name, port.dtype, ("batch", port.shape[1], "height", "width"))
