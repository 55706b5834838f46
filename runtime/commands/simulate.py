"""jscc simulate: image, transmitter, radio channel and receiver in one go, with pictures."""

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from jscc.runtime.bundle import Bundle
from jscc.runtime.channel import Rayleigh, pass_through
from jscc.runtime.commands.engine import load_receiver, load_transmitter, read_picture
from jscc.runtime.commands.host_sides import HostSides, add_sides, read_sides
from jscc.runtime.commands.options import (
    add_engine,
    add_json,
    add_output,
    add_rate,
    add_sampling,
    decibels,
    display,
    make_parser,
)
from jscc.runtime.commands.receive import PNG, remarks
from jscc.runtime.csi import Csi
from jscc.runtime.errors import OutputError
from jscc.runtime.image_files import encode_png
from jscc.runtime.manifest import Manifest
from jscc.runtime.manifest_loops import LoopStep
from jscc.runtime.output_files import check_destination, write_file
from jscc.runtime.picture import Panel, side_by_side
from jscc.runtime.receiver import Receiver
from jscc.runtime.record import Record
from jscc.runtime.selftest import psnr_db
from jscc.runtime.sides import side_outputs
from jscc.runtime.terminal import notice, say, say_json, table
from jscc.runtime.transmitter import Transmitter

Pixels = npt.NDArray[np.uint8]

_IMAGE = (3, "height", "width")


@dataclass(frozen=True)
class Result:
    """One image sent, received and compared.

    Attributes:
        name: The image's file, as given.
        sent: What was sent.
        codec: What the codec alone decodes, before any generative stage; None without one.
        received: What the receiver returns.
        csi: State of the channel.
        record: What ran.
    """

    name: str
    sent: Pixels
    codec: Pixels | None
    received: Pixels
    csi: Csi
    record: Record

    @property
    def cbr(self) -> float:
        """Complex channel uses per source sample."""
        return self.record.symbols / self.sent.size


@dataclass(frozen=True)
class Devices:
    """Both ends of the link.

    Attributes:
        sender: The transmitter.
        receiver: The receiver.
        codec: A receiver that stops after the codec; None where the bundle is no more than that.
        side: The host's own side inputs of the receiver.
        manifest: Of the bundle.
    """

    sender: Transmitter
    receiver: Receiver
    codec: Receiver | None
    side: HostSides
    manifest: Manifest


def main(arguments: Sequence[str]) -> int:
    """Run ``jscc simulate BUNDLE IMAGE… --snr DB``."""
    options = _parse(arguments)
    bundle = Bundle.open(options.bundle)
    outputs = _outputs(options)
    results = []
    with _load(bundle, options) as devices:
        for number, path in enumerate(options.images):
            sent = read_picture(path, bundle.manifest.image.max_pixels)
            result = _simulate(display(path), sent, number, devices, options)
            for text in remarks(result.record):
                notice(f"jscc simulate: {path}: {text}")
            if outputs:
                received, comparison = outputs[number]
                sheet = compare(result, options.channel)
                write_file(received, encode_png(result.received), force=options.force)
                write_file(comparison, encode_png(sheet), force=options.force)
            results.append(result)
    if options.json:
        paths = [[display(path) for path in pair] for pair in outputs]
        rows = [_row(result, options.channel) for result in results]
        say_json({"bundle": bundle.sha256, "images": rows, "outputs": paths})
    else:
        header = ("image", "size", "cbr", "SNR", "gain", "codec", "received", "steps", "ms")
        say(table([header, *map(_cells, results)], header=True))
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("simulate", "Send images over a simulated radio channel and receive them.")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    add_output(
        parser,
        "DIR",
        "folder for NAME-received.png and NAME-compare.png (default: only the table)",
        required=False,
    )
    parser.add_argument("--snr", type=decibels, required=True, metavar="DB")
    parser.add_argument("--channel", choices=("awgn", "rayleigh"), default="awgn")
    add_rate(parser)
    add_sampling(parser)
    add_sides(parser)
    add_engine(parser)
    add_json(parser)
    return parser.parse_args(arguments)


@contextmanager
def _load(bundle: Bundle, options: argparse.Namespace) -> Iterator[Devices]:
    """Everything that runs, loaded once for all images."""
    side = read_sides(bundle.manifest, options.context, options.sides)
    codec = codec_alone(bundle)
    names, threads = options.providers, options.threads
    with ExitStack() as stack:
        sender = stack.enter_context(load_transmitter(bundle, names, threads))
        receiver = stack.enter_context(
            load_receiver(bundle, names, threads, strict=False, engine=options.engine)
        )
        other = None
        if codec is not None:
            other = stack.enter_context(load_receiver(codec, names, threads, strict=False))
        yield Devices(sender, receiver, other, side, bundle.manifest)


def _outputs(options: argparse.Namespace) -> list[tuple[Path, Path]]:
    """Where the two pictures of each image go; nothing without ``-o``."""
    folder: Path | None = options.output
    if folder is None:
        return []
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(
            "E_OUTPUT_FOLDER",
            f"output {str(folder)!r}: got {error.strerror}, expected a folder or a free name. "
            "Choose another with -o.",
        ) from error
    stems = [path.stem for path in options.images]
    if len(set(stems)) < len(stems):
        stems = [f"{index:04d}-{stem}" for index, stem in enumerate(stems)]
    outputs = [
        (folder / f"{stem}-received{PNG}", folder / f"{stem}-compare{PNG}") for stem in stems
    ]
    for path in (path for pair in outputs for path in pair):
        check_destination(path, force=options.force)
    return outputs


def _simulate(
    name: str, sent: Pixels, number: int, devices: Devices, options: argparse.Namespace
) -> Result:
    """Send one image and receive it."""
    # The same draws as ``jscc channel`` makes for this seed and frame.
    rng = np.random.default_rng([options.seed, number])
    csi = Csi(options.snr)
    if options.channel == "rayleigh":
        csi = Rayleigh().draw(options.snr, rng=rng)
    clean, side = devices.sender.send_with_side(sent, csi=csi, rate=options.rate)
    symbols = pass_through(clean, csi, rng=rng)
    size = sent.shape[0], sent.shape[1]
    received, record = devices.receiver.receive(
        symbols,
        csi,
        seed=options.seed,
        frame=number,
        sampler=options.sampler,
        steps=options.steps,
        start=options.start,
        start_level=options.start_level,
        guidance=options.guidance,
        guide=options.guide,
        guide_every=options.guide_every,
        travel=options.travel,
        settings=dict(options.settings),
        spacing=options.spacing,
        size=size,
        side={**devices.side.of(devices.manifest, size), **side},
    )
    codec = None
    if devices.codec is not None:
        seed = options.seed
        codec, _ = devices.codec.receive(
            symbols, csi, seed=seed, frame=number, size=size, side=side
        )
    return Result(name, sent, codec, received, csi, record)


def codec_alone(bundle: Bundle) -> Bundle | None:
    """`bundle` with its program cut after the stage that decodes the symbols.

    Returns:
        None where the program ends there anyway.
    """
    manifest = bundle.manifest
    for index, step in enumerate(manifest.program[:-1]):
        if isinstance(step, LoopStep):
            break
        images = [p.name for p in manifest.stages[step].outputs if p.shape[1:] == _IMAGE]
        if images:
            codec = replace(
                manifest,
                program=manifest.program[: index + 1],
                image_output=images[0],
                loops={},
                descents={},
                side_inputs=tuple(port.name for port in side_outputs(manifest)),
                selftest=None,
            )
            return replace(bundle, manifest=codec)
    return None


def compare(result: Result, channel: str) -> Pixels:
    """The original, the codec alone and the received image side by side."""
    height, width = result.sent.shape[:2]
    record = result.record
    panels = [Panel("original", result.sent, (f"{height} x {width} pixels",))]
    if result.codec is not None:
        panels.append(
            Panel("codec alone", result.codec, (f"PSNR {_psnr(result.codec, result.sent)}",))
        )
    ran = [f"{loop.steps} steps ({loop.sampler})" for loop in record.loops.values()]
    ran += [f"{each.steps} steps of descent" for each in record.descents.values()]
    loops = ", ".join(ran)
    lines = (
        f"PSNR {_psnr(result.received, result.sent)}",
        f"{loops or 'no steps'}, {_ms(record)} ms",
    )
    panels.append(Panel("received", result.received, lines))
    footer = "   ".join(
        (
            f"{channel}, SNR {record.snr_db_declared:g} dB, gain {_gain(result.csi)}",
            f"cbr 1/{1 / result.cbr:.3g}",
            f"{record.symbols} symbols",
            f"seed {record.seed}",
            f"{record.system}, {record.precision}, bundle {record.bundle[:10]}",
        )
    )
    return side_by_side(panels, footer=footer)


def _row(result: Result, channel: str) -> Mapping[str, object]:
    codec = None if result.codec is None else _finite(psnr_db(result.codec, result.sent))
    return {
        "cbr": result.cbr,
        "channel": channel,
        "gain": [result.csi.gain.real, result.csi.gain.imag],
        "image": result.name,
        "psnr_db": {"codec": codec, "received": _finite(psnr_db(result.received, result.sent))},
        "record": json.loads(result.record.to_json()),
        "size": list(result.sent.shape[:2]),
    }


def _cells(result: Result) -> tuple[str, ...]:
    height, width = result.sent.shape[:2]
    return (
        result.name,
        f"{height}x{width}",
        f"{result.cbr:.5f}",
        f"{result.csi.snr_db:g} dB",
        _gain(result.csi),
        "-" if result.codec is None else _psnr(result.codec, result.sent),
        _psnr(result.received, result.sent),
        str(result.record.steps),
        _ms(result.record),
    )


def _psnr(image: Pixels, reference: Pixels) -> str:
    value = psnr_db(image, reference)
    return "equal" if math.isinf(value) else f"{value:.2f} dB"


def _finite(value: float) -> float | None:
    """JSON knows no infinity: equal images have no PSNR there."""
    return value if math.isfinite(value) else None


def _gain(csi: Csi) -> str:
    return f"{csi.gain.real:.3f}{csi.gain.imag:+.3f}j"


def _ms(record: Record) -> str:
    return f"{record.times_ms['total']:.0f}"
