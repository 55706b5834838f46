"""Coherence: whether the parts of a manifest fit together.

Each part alone was checked when it was read. Here every reference leads somewhere, every port is
fed by something earlier of the same dtype and shape, and signal, image and ports agree on sizes.
"""

from jscc.runtime.declared import refuse
from jscc.runtime.errors import BundleError
from jscc.runtime.manifest import Loop, LoopStep, Manifest, StageEntry
from jscc.runtime.ports import Port, split_dim

ENCODE = "encode"  # the transmitter's stage; all others are the receiver's
TIMESTEP = Port("timestep", "float32", ("batch",))


def check_coherence(manifest: Manifest) -> None:
    """Hold the parts of `manifest` against each other.

    Raises:
        BundleError: ``E_BUNDLE_INCONSISTENT`` naming the JSON pointer; ``E_BUNDLE_PATH``, two file
            names differ by case only.
    """
    _check_files(manifest)
    _check_program(manifest)
    _check_flow(manifest)
    _check_encode(manifest)
    _check_sizes(manifest)
    _check_loops(manifest)
    _check_records(manifest)


def _clash(pointer: str, got: str, expected: str) -> BundleError:
    return refuse(pointer, got, expected, "E_BUNDLE_INCONSISTENT")


def _check_files(manifest: Manifest) -> None:
    lower: dict[str, str] = {}
    for name in manifest.files:
        other = lower.setdefault(name.lower(), name)
        if other != name:
            raise refuse("/files", f"{other!r} and {name!r}", "names that differ", "E_BUNDLE_PATH")
    named = {f"/stages/{key}/graph": entry.graph for key, entry in manifest.stages.items()}
    named |= {f"/tensors/{key}/file": entry.file for key, entry in manifest.tensors.items()}
    for pointer, name in named.items():
        suffix = ".onnx" if pointer.startswith("/stages") else ".npy"
        if name not in manifest.files or not name.endswith(suffix):
            raise _clash(pointer, repr(name), f"a {suffix} file that /files lists")
    used = set(named.values())
    if len(used) < len(named):
        raise _clash("/files", "one file for two stages or tensors", "a file each")
    for name in manifest.files:
        if name.endswith((".onnx", ".npy")) and name not in used:
            raise _clash("/files", f"{name!r}", "only graphs and tensors that something uses")


def _stage_of(step: str | LoopStep) -> str:
    return step.loop if isinstance(step, LoopStep) else step


def _check_program(manifest: Manifest) -> None:
    names = [_stage_of(step) for step in manifest.program]
    receiver = set(manifest.stages) - {ENCODE}
    for index, name in enumerate(names):
        if name not in receiver:
            raise _clash(f"/program/{index}", repr(name), f"one of {sorted(receiver)}")
    if len(set(names)) < len(names):
        raise _clash("/program", f"{names}", "each stage at most once")
    if receiver - set(names):
        raise _clash("/stages", f"{sorted(receiver - set(names))}", "stages that the program runs")
    loops = {step.loop for step in manifest.program if isinstance(step, LoopStep)}
    if loops != set(manifest.loops):
        raise _clash("/loops", f"{sorted(manifest.loops)}", f"the program's {sorted(loops)}")


def _fixed(manifest: Manifest) -> dict[str, Port]:
    """The ports whose meaning is the same in every bundle."""
    signal = manifest.signal
    suffix = f"/{signal.stride}" if signal.stride > 1 else ""
    height, width = _image_size(manifest) or (0, 0)
    rows = height // signal.stride or f"height{suffix}"
    columns = width // signal.stride or f"width{suffix}"
    grid = ("batch", signal.planes, rows, columns)
    return {
        "image": Port("image", "float32", ("batch", 3, height or "height", width or "width")),
        "planes": Port("planes", "float32", grid),
        "received": Port("received", "float32", grid),
        "snr_db": Port("snr_db", "float32", ("batch",)),
        "gain": Port("gain", "float32", ("batch", 2)),
    }


def _image_size(manifest: Manifest) -> tuple[int, int] | None:
    """Height and width where the bundle takes one size only, as its received symbols have it."""
    for stage in manifest.stages.values():
        for port in stage.inputs:
            if port.name == "received" and len(port.shape) == 4:
                rows, columns = port.shape[2:]
                if isinstance(rows, int) and isinstance(columns, int):
                    return rows * manifest.signal.stride, columns * manifest.signal.stride
    return None


def _check_flow(manifest: Manifest) -> None:
    """Follow the named tensors through the program."""
    feeds = _given(manifest)
    for step in manifest.program:
        name = _stage_of(step)
        stage = manifest.stages[name]
        pointer = f"/stages/{name}"
        if isinstance(step, LoopStep):
            state = _check_state(f"/loops/{name}", manifest.loops[name], stage, feeds)
            inside = {**feeds, "timestep": TIMESTEP, state.name: state}
            _check_inputs(pointer, stage, inside)
            _produce(feeds, f"/loops/{name}/state", state)
        else:
            _check_inputs(pointer, stage, feeds)
        for port in stage.outputs:
            _produce(feeds, f"{pointer}/outputs", port)
    image = feeds.get(manifest.image_output)
    expected = _fixed(manifest)["image"]
    if image is None or not _matches(image, expected):
        got = f"{manifest.image_output!r} {image or ''}".strip()
        raise _clash("/image_output", got, f"a named tensor {expected}")


def _given(manifest: Manifest) -> dict[str, Port]:
    """What the receiver has before its first stage."""
    fixed = _fixed(manifest)
    feeds = {name: fixed[name] for name in ("received", *manifest.signal.csi_inputs)}
    for name, entry in manifest.tensors.items():
        _produce(feeds, f"/tensors/{name}", Port(name, entry.dtype, entry.shape))
    readers = [port for stage in manifest.stages.values() for port in stage.inputs]
    for index, name in enumerate(manifest.side_inputs):
        port = next((port for port in readers if port.name == name), None)
        if port is None:
            raise _clash(f"/side_inputs/{index}", repr(name), "the name of a stage's input")
        _produce(feeds, f"/side_inputs/{index}", port)
    return feeds


def _produce(feeds: dict[str, Port], pointer: str, port: Port) -> None:
    if port.name in {*feeds, "received", "snr_db", "gain", "timestep"}:
        raise _clash(pointer, repr(port.name), "a name that nothing else has")
    feeds[port.name] = port


def _check_inputs(pointer: str, stage: StageEntry, feeds: dict[str, Port]) -> None:
    for index, port in enumerate(stage.inputs):
        feed = feeds.get(port.name)
        if feed is None:
            raise _clash(f"{pointer}/inputs/{index}", repr(port.name), f"one of {sorted(feeds)}")
        if not _matches(feed, port):
            raise _clash(f"{pointer}/inputs/{index}", f"{port.name!r} {port}", f"{feed}")


def _matches(feed: Port, port: Port) -> bool:
    """Whether `feed` can be fed to `port`; a constant of one item serves the whole batch."""
    if feed.dtype != port.dtype or len(feed.shape) != len(port.shape):
        return False
    return all(
        left == right or (axis == 0 and left == 1 and right == "batch")
        for axis, (left, right) in enumerate(zip(feed.shape, port.shape, strict=True))
    )


def _check_state(pointer: str, loop: Loop, stage: StageEntry, feeds: dict[str, Port]) -> Port:
    """The port that the loop advances; clean estimate, start and guide are like it."""
    state = next((port for port in stage.inputs if port.name == loop.state), None)
    if state is None:
        names = [port.name for port in stage.inputs]
        raise _clash(f"{pointer}/state", repr(loop.state), f"one of the stage's inputs {names}")
    if not _matches(stage.outputs[0], state):
        raise _clash(f"{pointer}/state", f"{stage.outputs[0]} from the stage", f"{state}")
    for key, name in (("start", loop.start), ("guide", loop.guide)):
        if name is not None and (name not in feeds or not _matches(feeds[name], state)):
            got = f"{name!r} {feeds.get(name, '')}".strip()
            raise _clash(f"{pointer}/{key}", got, f"an earlier tensor {state}")
    return state


def _check_encode(manifest: Manifest) -> None:
    stage = manifest.stages.get(ENCODE)
    if stage is None:
        return
    fixed = _fixed(manifest)
    told = ("image", *manifest.signal.csi_inputs) if manifest.signal.transmitter_csi else ("image",)
    _check_inputs(f"/stages/{ENCODE}", stage, {name: fixed[name] for name in told})
    if len(stage.outputs) != 1 or not _matches(stage.outputs[0], fixed["planes"]):
        got = ", ".join(f"{port.name} {port}" for port in stage.outputs)
        raise _clash(f"/stages/{ENCODE}/outputs", got, f"one output {fixed['planes']}")


def _check_sizes(manifest: Manifest) -> None:
    image, signal = manifest.image, manifest.signal
    if image.multiple % signal.stride:
        raise _clash("/image/multiple", f"{image.multiple}", f"a multiple of {signal.stride}")
    if image.max_pixels < image.multiple**2:
        raise _clash("/image/max_pixels", f"{image.max_pixels}", f"{image.multiple**2} at least")
    height, width = _image_size(manifest) or (0, 0)
    if height % image.multiple or width % image.multiple or height * width > image.max_pixels:
        raise _clash("/image", f"{height}x{width} in the ports", f"multiples of {image.multiple}")
    if not signal.snr_db_range[0] <= signal.snr_db_default <= signal.snr_db_range[1]:
        got = f"{signal.snr_db_default}"
        raise _clash("/signal/snr_db_default", got, f"a value in {list(signal.snr_db_range)}")
    if image.tile % image.multiple or 2 * image.overlap > image.tile:
        got = f"{image.tile} with overlap {image.overlap}"
        raise _clash("/image/tile", got, f"a multiple of {image.multiple}, overlap at most half")
    for name, stage in manifest.stages.items():
        if stage.tiled and not image.tile:
            raise _clash(f"/stages/{name}/tiled", "true", "false where /image/tile is 0")
        for divisor in _divisors(stage):
            if image.multiple % divisor or (stage.tiled and image.overlap % divisor):
                got = f"a dimension divided by {divisor}"
                raise _clash(f"/stages/{name}", got, "a divisor of /image/multiple and overlap")


def _divisors(stage: StageEntry) -> set[int]:
    dims = [dim for port in (*stage.inputs, *stage.outputs) for dim in port.shape]
    return {split_dim(dim)[1] for dim in dims if isinstance(dim, str)}


def _check_loops(manifest: Manifest) -> None:
    for name, loop in manifest.loops.items():
        pointer, sampler = f"/loops/{name}/sampler", loop.sampler
        limit = loop.schedule.timesteps
        if sampler.steps > limit:
            raise _clash(f"{pointer}/steps", f"{sampler.steps}", f"at most {limit} timesteps")
        if manifest.selftest and not 1 <= manifest.selftest.steps <= limit:
            raise _clash("/selftest/steps", f"{manifest.selftest.steps}", f"1 to {limit} timesteps")
        if sampler.start == "received" and loop.start is None:
            raise _clash(f"{pointer}/start", "'received'", "'noise' where the loop's start is null")
        if sampler.guidance and loop.guide is None:
            raise _clash(f"{pointer}/guidance", f"{sampler.guidance}", "0 where there is no guide")


def _check_records(manifest: Manifest) -> None:
    """What parity and self-test speak of exists."""
    for name, outputs in manifest.parity.items():
        stage = manifest.stages.get(name)
        known = {port.name for port in stage.outputs} if stage else set()
        if stage is None or not set(outputs) <= known:
            got = f"{name!r} {sorted(outputs)}"
            raise _clash("/parity", got, "stages and their output ports")
    if manifest.selftest is None:
        return
    symbols = manifest.tensors.get(manifest.selftest.symbols)
    image = manifest.tensors.get(manifest.selftest.image)
    if symbols is None or image is None:
        raise _clash("/selftest", "an unknown tensor", f"one of {sorted(manifest.tensors)}")
    half, stride = manifest.signal.planes // 2, manifest.signal.stride
    if symbols.dtype != "complex64" or len(symbols.shape) != 3 or symbols.shape[0] != half:
        got = f"{symbols.dtype}{list(symbols.shape)}"
        raise _clash("/selftest/symbols", got, f"complex64[{half}, rows, columns]")
    height, width = stride * symbols.shape[1], stride * symbols.shape[2]
    shape = image.shape
    fits = len(shape) == 3 and shape[0] <= height and shape[1] <= width and shape[2] == 3
    if image.dtype != "uint8" or not fits:
        got = f"{image.dtype}{list(shape)}"
        raise _clash("/selftest/image", got, f"uint8[up to {height}, up to {width}, 3]")
