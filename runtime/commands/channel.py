"""jscc channel: symbols through a simulated radio channel, from file to file."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from jscc.runtime.channel import Awgn, Channel, Rayleigh
from jscc.runtime.commands.options import (
    add_json,
    add_output,
    decibels,
    display,
    make_parser,
    seed,
)
from jscc.runtime.frame import Frame
from jscc.runtime.symbol_files import check_symbols_path, read_symbols, write_symbols
from jscc.runtime.terminal import say, say_json, table

CHANNELS: Mapping[str, Channel] = {"awgn": Awgn(), "rayleigh": Rayleigh()}


def main(arguments: Sequence[str]) -> int:
    """Run ``jscc channel SYMBOLS -o OUT --snr DB --seed N``."""
    parser = make_parser("channel", "Pass symbols through a simulated radio channel.")
    parser.add_argument("symbols", type=Path, metavar="SYMBOLS")
    add_output(parser, "OUT", "NAME.sigmf-meta (with NAME.sigmf-data), NAME.npz or NAME.npy")
    parser.add_argument("--channel", choices=tuple(CHANNELS), default="awgn")
    parser.add_argument("--snr", type=decibels, required=True, metavar="DB")
    parser.add_argument("--seed", type=seed, required=True, metavar="N", help="of fading and noise")
    add_json(parser)
    options = parser.parse_args(arguments)
    check_symbols_path(options.output, force=options.force)
    frames = [
        transmit(frame, options.channel, options.snr, seed=options.seed)
        for frame in read_symbols(options.symbols).frames
    ]
    write_symbols(options.output, frames, force=options.force)
    if options.json:
        rows = [_row(frame) for frame in frames]
        say_json({"channel": options.channel, "frames": rows, "output": display(options.output)})
    else:
        say(table([("frame", "symbols", "SNR", "gain"), *map(_cells, frames)], header=True))
    return 0


def _row(frame: Frame) -> Mapping[str, object]:
    gain = frame.gain or 0j
    return {
        "frame": frame.number,
        "gain": [gain.real, gain.imag],
        "snr_db": frame.snr_db,
        "symbols": frame.symbols.size,
    }


def _cells(frame: Frame) -> tuple[str, ...]:
    gain = frame.gain or 0j
    number, count = str(frame.number), str(frame.symbols.size)
    # As ``receive --gain`` takes it: a .npy file does not carry it.
    return number, count, f"{frame.snr_db:g} dB", f"{gain.real!r},{gain.imag!r}"


def transmit(frame: Frame, channel: str, snr_db: float, *, seed: int) -> Frame:
    """Pass one frame through `channel`.

    Args:
        frame: What was sent; unit mean power.
        channel: A key of `CHANNELS`.
        snr_db: Signal-to-noise ratio in dB.
        seed: With the frame's number, the seed of fading and noise.
    """
    rng = np.random.default_rng([seed, frame.number])
    received, csi = CHANNELS[channel].transmit(frame.symbols, snr_db, rng=rng)
    return replace(frame, symbols=received, snr_db=csi.snr_db, gain=csi.gain)
