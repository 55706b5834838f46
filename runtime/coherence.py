"""Coherence: whether the parts of a manifest fit together.

Each part alone was checked when it was read. Here every reference leads somewhere, every port is
fed by something earlier of the same dtype and shape, and signal, image and ports agree on sizes.
"""

import math

from jscc.runtime.declared import refuse
from jscc.runtime.descent_coherence import check_descent
from jscc.runtime.errors import BundleError
from jscc.runtime.fixed import open_entry
from jscc.runtime.manifest import Manifest, Signal, StageEntry
from jscc.runtime.manifest_loops import Loop, LoopStep
from jscc.runtime.ports import Port, resolve, split_dim
from jscc.runtime.sides import (
    ENCODE,
    MAX_SIDE_OUTPUTS,
    MAX_SIDE_VALUES,
    planes_allowed,
    side_outputs,
    side_port,
)

STEP_INPUTS = ("timestep", "alpha_bar", "alpha_bar_next")  # numbers of each step of a loop


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
    _check_signal(manifest.signal)
    _check_sizes(manifest)
    _check_loops(manifest)
    _check_descents(manifest)
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


def _check_program(manifest: Manifest) -> None:
    names = manifest.receiver_stages
    receiver = set(manifest.stages) - {ENCODE}
    for index, step in enumerate(manifest.program):
        for name in manifest.stages_of(step):
            if name not in receiver:
                raise _clash(f"/program/{index}", repr(name), f"one of {sorted(receiver)}")
    if len(set(names)) < len(names):
        raise _clash("/program", f"{list(names)}", "each stage at most once")
    if receiver - set(names):
        raise _clash("/stages", f"{sorted(receiver - set(names))}", "stages that the program runs")
    taken = {*manifest.loops, *manifest.stages} & set(manifest.descents)
    if taken:
        raise _clash("/descents", f"{sorted(taken)}", "names that no loop or stage has")
    loops = {step.loop for step in manifest.program if isinstance(step, LoopStep)}
    said = {*manifest.loops, *manifest.descents}
    if loops != said:
        raise _clash("/loops", f"{sorted(said)}", f"the program's {sorted(loops)}")


def _fixed(manifest: Manifest) -> dict[str, Port]:
    """The ports whose meaning is the same in every bundle."""
    signal = manifest.signal
    suffix = f"/{signal.stride}" if signal.stride > 1 else ""
    height, width = _image_size(manifest) or (0, 0)
    rows = height // signal.stride or f"height{suffix}"
    columns = width // signal.stride or f"width{suffix}"
    grid = ("batch", "planes" if signal.rates else signal.planes, rows, columns)
    return {
        "image": Port("image", "float32", ("batch", 3, height or "height", width or "width")),
        "planes": Port("planes", "float32", grid),
        "received": Port("received", "float32", grid),
        "snr_db": Port("snr_db", "float32", ("batch",)),
        "gain": Port("gain", "float32", ("batch", 2)),
        "rate": Port("rate", "float32", ("batch",)),
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
    before_loops: dict[str, Port] | None = None
    made: set[str] = set()  # by stages
    for step in manifest.program:
        if isinstance(step, LoopStep) and before_loops is None:
            before_loops = {name: port for name, port in feeds.items() if name in made}
        name = step.loop if isinstance(step, LoopStep) else step
        if name in manifest.descents:
            for port in check_descent(manifest, name, feeds):
                _produce(feeds, f"/descents/{name}/render", port)
            continue
        stage = manifest.stages[name]
        pointer = f"/stages/{name}"
        if isinstance(step, LoopStep):
            state = _check_loop(manifest, name, feeds)
            _produce(feeds, f"/loops/{name}/state", state)
            continue
        _check_inputs(pointer, stage, feeds)
        for port in stage.outputs:
            _produce(feeds, f"{pointer}/outputs", port)
            made.add(port.name)
    image = feeds.get(manifest.image_output)
    expected = _fixed(manifest)["image"]
    if image is None or not _matches(image, expected):
        got = f"{manifest.image_output!r} {image or ''}".strip()
        raise _clash("/image_output", got, f"a named tensor {expected}")
    alone = manifest.codec_output
    if alone is not None:
        early = (before_loops or {}).get(alone)
        if early is None or not _matches(early, expected):
            got = f"{alone!r} {early or ''}".strip()
            wanted = f"a tensor {expected} that is there before the first loop"
            raise _clash("/codec_output", got, wanted)


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
    if port.name in {*feeds, "received", "snr_db", "gain", *STEP_INPUTS}:
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


def _check_loop(manifest: Manifest, name: str, feeds: dict[str, Port]) -> Port:
    """Hold a loop's stages to what they are fed; return the port that it advances."""
    loop, stage, pointer = manifest.loops[name], manifest.stages[name], f"/loops/{name}"
    state = _check_state(pointer, loop, stage, feeds)
    inside = {**feeds, state.name: state}
    for key in STEP_INPUTS:
        inside[key] = Port(key, "float32", ("batch",))
    _produce(inside, pointer, Port("noise", state.dtype, state.shape))
    stages = {name: stage} | {guide: manifest.stages[guide] for guide in loop.guides.values()}
    for setting in loop.settings:
        readers = [port for each in stages.values() for port in each.inputs]
        if setting not in {port.name for port in readers}:
            raise _clash(f"{pointer}/settings", repr(setting), "a name that a stage of it reads")
        _produce(inside, f"{pointer}/settings", Port(setting, "float32", ("batch",)))
    _check_inputs(f"/stages/{name}", stage, inside)
    answers = {port.name: port for port in stage.outputs}
    for key in ("grad", "direction"):
        if key in answers and not _matches(answers[key], state):
            raise _clash(f"/stages/{name}/outputs", f"{key!r} {answers[key]}", f"{state}")
    for guide in loop.guides.values():
        _check_guide(manifest, guide, {**inside, **answers, "grad": state}, stage)
    return state


def _check_guide(manifest: Manifest, name: str, inside: dict[str, Port], plain: StageEntry) -> None:
    """Hold the stage of guided steps to the one that it stands in for."""
    pointer = f"/stages/{name}"
    stage, sizes = open_entry(manifest.stages[name], inside)
    tile = manifest.image.tile
    allowed = {"batch": 1, "height": tile, "width": tile} if stage.tiled else {"batch": 1}
    for symbol, size in sizes.items():
        if allowed.get(symbol) != size:
            raise _clash(pointer, f"{symbol} {size} fixed", f"any {symbol}, or {allowed}")
    _check_inputs(pointer, stage, inside)
    outputs = {port.name: port for port in stage.outputs}
    first = plain.outputs[0].name
    wanted = (first, "grad", *(port.name for port in plain.outputs[1:]))
    if stage.outputs[0].name != first or set(outputs) != set(wanted):
        raise _clash(f"{pointer}/outputs", f"{list(outputs)}", f"{list(wanted)}, {first!r} first")
    for key, port in outputs.items():
        if not _matches(port, inside[key]):
            raise _clash(f"{pointer}/outputs", f"{key!r} {port}", f"{inside[key]}")


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
    fixed, signal, pointer = _fixed(manifest), manifest.signal, f"/stages/{ENCODE}"
    told = ["image", *(signal.csi_inputs if signal.transmitter_csi else ())]
    told += ["rate"] if signal.rates else []
    _check_inputs(pointer, stage, {name: fixed[name] for name in told})
    names = [port.name for port in stage.inputs]
    if signal.rates and "rate" not in names:
        raise _clash(f"{pointer}/inputs", f"{names}", "'rate' too, which /signal/rates speaks of")
    if not _matches(stage.outputs[0], fixed["planes"]):
        got = ", ".join(f"{port.name} {port}" for port in stage.outputs)
        raise _clash(f"{pointer}/outputs", got, f"{fixed['planes']} first")
    sides = side_outputs(manifest)
    for index, port in enumerate(sides, 1):
        _check_side_output(manifest, f"{pointer}/outputs/{index}", port)
    count = sum(math.prod(dim for dim in p.shape[1:] if isinstance(dim, int)) for p in sides)
    if count > MAX_SIDE_VALUES or len(sides) > MAX_SIDE_OUTPUTS:
        got = f"{len(sides)} with {count} values beside the planes"
        expected = f"at most {MAX_SIDE_OUTPUTS} with {MAX_SIDE_VALUES}"
        raise _clash(f"{pointer}/outputs", got, expected)


def _check_side_output(manifest: Manifest, pointer: str, port: Port) -> None:
    """Hold what the transmitter sends beside the symbols to what the receiver takes."""
    if port.name not in manifest.side_inputs:
        got, names = repr(port.name), list(manifest.side_inputs)
        raise _clash(pointer, got, f"one of /side_inputs, {names}")
    reader = side_port(manifest, port.name)
    whole = all(isinstance(dim, int) for dim in port.shape[1:])
    if port.dtype != "float32" or port.shape[:1] != ("batch",) or not whole:
        raise _clash(pointer, f"{port.name!r} {port}", "float32[batch,…] of a fixed size")
    if reader is None or not _matches(port, reader):
        raise _clash(pointer, f"{port.name!r} {port}", f"{reader} as the receiver takes it")


def _check_signal(signal: Signal) -> None:
    if signal.rates and signal.rates[-1] != signal.planes:
        got = f"{list(signal.rates)}"
        raise _clash("/signal/rates", got, f"{signal.planes}, all planes, at the end")
    if not signal.snr_db_range[0] <= signal.snr_db_default <= signal.snr_db_range[1]:
        got = f"{signal.snr_db_default}"
        raise _clash("/signal/snr_db_default", got, f"a value in {list(signal.snr_db_range)}")


def _check_sizes(manifest: Manifest) -> None:
    image, signal = manifest.image, manifest.signal
    if image.multiple % signal.stride:
        raise _clash("/image/multiple", f"{image.multiple}", f"a multiple of {signal.stride}")
    if image.max_pixels < image.multiple**2:
        raise _clash("/image/max_pixels", f"{image.max_pixels}", f"{image.multiple**2} at least")
    height, width = _image_size(manifest) or (0, 0)
    if height % image.multiple or width % image.multiple or height * width > image.max_pixels:
        raise _clash("/image", f"{height}x{width} in the ports", f"multiples of {image.multiple}")
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
        _check_regimes(manifest, pointer, loop)
        if sampler.guide is not None and sampler.guide not in loop.guides:
            got, known = repr(sampler.guide), sorted(loop.guides)
            raise _clash(f"{pointer}/guide", got, f"one of {known}, or null")
        if sampler.guidance and loop.guide is None and not loop.guides:
            raise _clash(f"{pointer}/guidance", f"{sampler.guidance}", "0 where there is no guide")
        largest = max((weight for _, weight in sampler.guidance_by_snr), default=sampler.guidance)
        if sampler.guidance != largest:
            got, wanted = f"{sampler.guidance}", f"{largest}, the largest of guidance_by_snr"
            raise _clash(f"{pointer}/guidance", got, wanted)


def _check_regimes(manifest: Manifest, pointer: str, loop: Loop) -> None:
    """Hold what is done by SNR, and the noise levels of the bundle's own, to the schedule."""
    limit = loop.schedule.timesteps
    for index, regime in enumerate(loop.sampler.regimes):
        where = f"{pointer}/regimes/{index}"
        if regime.steps > limit:
            raise _clash(f"{where}/steps", f"{regime.steps}", f"at most {limit} timesteps")
        if regime.start == "received" and loop.start is None:
            raise _clash(f"{where}/start", "'received'", "'noise' where the loop's start is null")
        if regime.start == "noise" and regime.start_level is not None:
            raise _clash(f"{where}/start_level", f"{regime.start_level}", "null from noise")
        level = round((regime.start_level or 1.0) * (limit - 1))
        if regime.steps > level + 1:
            raise _clash(f"{where}/steps", f"{regime.steps}", f"at most {level + 1} from there")
        if regime.steps == 0 and (manifest.codec_output is None or manifest.descents):
            wanted = "1 or more where codec_output is null or a descent follows"
            raise _clash(f"{where}/steps", "0", wanted)
    for index, levels in enumerate(loop.sampler.levels):
        if levels[-1] >= limit:
            got = f"{levels[-1]}"
            raise _clash(f"{pointer}/levels/{index}", got, f"noise levels below {limit}")
    ends = [(len(levels), levels[-1]) for levels in loop.sampler.levels]
    if len(set(ends)) < len(ends):
        wanted = "one list for each number of steps and last level"
        raise _clash(f"{pointer}/levels", f"{sorted(ends)}", wanted)


def _check_descents(manifest: Manifest) -> None:
    for name, descent in manifest.descents.items():
        least = len(descent.rounds)
        if manifest.selftest and manifest.selftest.steps < least:
            got = f"{manifest.selftest.steps}"
            raise _clash("/selftest/steps", got, f"{least} or more, one for each round of {name!r}")


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
    halves, stride = [each // 2 for each in planes_allowed(manifest.signal)], manifest.signal.stride
    if symbols.dtype != "complex64" or len(symbols.shape) != 3 or symbols.shape[0] not in halves:
        got, wanted = f"{symbols.dtype}{list(symbols.shape)}", " or ".join(map(str, halves))
        raise _clash("/selftest/symbols", got, f"complex64[{wanted}, rows, columns]")
    height, width = stride * symbols.shape[1], stride * symbols.shape[2]
    shape = image.shape
    fits = len(shape) == 3 and shape[0] <= height and shape[1] <= width and shape[2] == 3
    if image.dtype != "uint8" or not fits:
        got = f"{image.dtype}{list(shape)}"
        raise _clash("/selftest/image", got, f"uint8[up to {height}, up to {width}, 3]")
    sizes = {"batch": 1, "height": height, "width": width, "planes": 2 * symbols.shape[0]}
    for name, tensor in manifest.selftest.side.items():
        port, entry = side_port(manifest, name), manifest.tensors.get(tensor)
        if port is None or name not in manifest.side_inputs:
            raise _clash("/selftest/side", repr(name), f"one of {list(manifest.side_inputs)}")
        if entry is None or (entry.dtype, entry.shape) != (port.dtype, resolve(port, sizes)):
            got = repr(tensor) if entry is None else f"{tensor!r} {entry.dtype}{list(entry.shape)}"
            raise _clash(f"/selftest/side/{name}", got, f"a tensor {port} of one image")
