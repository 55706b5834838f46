"""jscc send: images to channel symbols, in a file."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from jscc.runtime.bundle import Bundle
from jscc.runtime.commands.engine import load_transmitter, read_picture
from jscc.runtime.commands.options import (
    add_csi,
    add_json,
    add_output,
    add_providers,
    add_rate,
    display,
    make_parser,
)
from jscc.runtime.csi import Csi
from jscc.runtime.errors import CsiError
from jscc.runtime.frame import Frame
from jscc.runtime.manifest import Signal
from jscc.runtime.sides import flatten_side, side_outputs
from jscc.runtime.symbol_files import check_carries, check_symbols_path, write_symbols
from jscc.runtime.terminal import notice, say, say_json, table


def main(arguments: Sequence[str]) -> int:
    """Run ``jscc send BUNDLE IMAGE… -o SYMBOLS``."""
    parser = make_parser("send", "Turn images into channel symbols of unit mean power.")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    add_output(parser, "SYMBOLS", "NAME.sigmf-meta (with NAME.sigmf-data), NAME.npz or NAME.npy")
    add_csi(parser)
    add_rate(parser)
    add_providers(parser)
    add_json(parser)
    options = parser.parse_args(arguments)
    check_symbols_path(options.output, force=options.force)
    bundle = Bundle.open(options.bundle)
    check_carries(options.output, sides=bool(side_outputs(bundle.manifest)))
    csi = _know(bundle.manifest.signal, options.snr, options.gain)
    frames = []
    with load_transmitter(bundle, options.providers, options.threads) as transmitter:
        for number, path in enumerate(options.images):
            pixels = read_picture(path, bundle.manifest.image.max_pixels)
            height, width = pixels.shape[:2]
            symbols, side = transmitter.send_with_side(pixels, csi=csi, rate=options.rate)
            about = Frame(symbols, number, (height, width), bundle=bundle.sha256)
            frames.append(replace(about, side=flatten_side(side)))
    write_symbols(options.output, frames, force=options.force)
    rows = [_row(path, frame) for path, frame in zip(options.images, frames, strict=True)]
    if options.json:
        say_json({"bundle": bundle.sha256, "images": rows, "output": display(options.output)})
    else:
        say(table([("image", "size", "symbols", "cbr"), *map(_cells, rows)], header=True))
    return 0


def _know(signal: Signal, snr_db: float | None, gain: complex | None) -> Csi:
    """What the transmitter is told of the channel.

    Raises:
        CsiError: ``E_CSI_NEEDED``, the transmitter has to know the gain and nobody says it.
    """
    if gain is None and signal.transmitter_csi and "gain" in signal.csi_inputs:
        raise CsiError(
            "E_CSI_NEEDED",
            "--gain: got nothing, expected the channel's gain, which this system's transmitter "
            "uses. Give --gain RE,IM.",
        )
    low, high = signal.snr_db_range
    if snr_db is not None and signal.transmitter_csi and not low <= snr_db <= high:
        used = min(max(snr_db, low), high)
        notice(f"jscc send: SNR {snr_db:g} dB is outside the trained range, {used:g} dB is used")
    return Csi(
        signal.snr_db_default if snr_db is None else snr_db, 1 + 0j if gain is None else gain
    )


def _row(path: Path, frame: Frame) -> Mapping[str, object]:
    height, width = frame.size or (0, 0)
    return {
        "cbr": frame.symbols.size / (3 * height * width),
        "frame": frame.number,
        "image": display(path),
        "size": [height, width],
        "symbols": frame.symbols.size,
    }


def _cells(row: Mapping[str, object]) -> tuple[str, ...]:
    return (
        str(row["image"]),
        "x".join(map(str, row["size"])),  # type: ignore[call-overload]
        str(row["symbols"]),
        f"{row['cbr']:.5f}",
    )
