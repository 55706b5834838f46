"""jscc receive: received symbols, from a file, to images."""

import argparse
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from jscc.runtime.bundle import Bundle
from jscc.runtime.commands.engine import load_receiver
from jscc.runtime.commands.host_sides import add_sides, read_sides
from jscc.runtime.commands.meanwhile import add_meanwhile, load_meanwhile, shapes_of
from jscc.runtime.commands.options import (
    add_csi,
    add_engine,
    add_json,
    add_output,
    add_sampling,
    display,
    image_size,
    make_parser,
    seed,
)
from jscc.runtime.csi import Csi
from jscc.runtime.errors import CsiError, SymbolsError, UsageError
from jscc.runtime.frame import Frame
from jscc.runtime.image_files import encode_png
from jscc.runtime.meanwhile import MeanwhileReceiver
from jscc.runtime.output_files import check_destination, write_file
from jscc.runtime.receiver import Receiver
from jscc.runtime.record import Record
from jscc.runtime.sides import shape_side
from jscc.runtime.symbol_files import Recording, read_symbols
from jscc.runtime.terminal import notice, say, say_json, table

PNG = ".png"


@dataclass(frozen=True)
class Known:
    """What the receiver is told of one frame's channel, and where that came from."""

    csi: Csi
    snr_source: str


def main(arguments: Sequence[str]) -> int:
    """Run ``jscc receive BUNDLE SYMBOLS -o IMAGE.png``."""
    options = _parse(arguments)
    bundle = Bundle.open(options.bundle)
    recording = read_symbols(options.symbols)
    frames = _pick(recording, options.frame)
    outputs = output_paths(options.output, len(frames))
    for path in outputs:
        check_destination(path, force=options.force)
    _check_origin(bundle, recording, frames, strict=options.strict)
    own = read_sides(bundle.manifest, options.context, options.sides)
    rows, lines = [], []
    with _load(bundle, frames, options) as device:
        for path, frame in zip(outputs, frames, strict=True):
            known = _know(bundle, frame, options)
            size = options.size or frame.size
            image, record = device.receive(
                frame.symbols,
                known.csi,
                seed=options.seed,
                frame=frame.number,
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
                side={
                    **own.of(bundle.manifest, size),
                    **shape_side(bundle.manifest, frame.side),
                },
            )
            write_file(path, encode_png(image), force=options.force)
            for text in remarks(record):
                notice(f"jscc receive: frame {frame.number}: {text}")
            rows.append(_row(path, known, record))
            lines.append(_cells(path, image.shape[:2], record))
    if options.json:
        say_json({"bundle": bundle.sha256, "hashed": recording.hashed, "images": rows})
    else:
        header = ("image", "size", "SNR", "steps", "ms")
        say(table([header, *lines], header=True))
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("receive", "Turn received symbols into images.")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("symbols", type=Path, metavar="SYMBOLS")
    add_output(parser, "IMAGE.png", "NAME.png; several frames become NAME-0000.png and so on")
    add_csi(parser)
    add_sampling(parser)
    parser.add_argument("--frame", type=seed, metavar="N", help="only the frame of this number")
    parser.add_argument(
        "--size", type=image_size, metavar="HxW", help="of the image that was sent, in pixels"
    )
    add_sides(parser)
    parser.add_argument(
        "--strict",
        action="store_true",
        help="refuse what is otherwise remarked on: an SNR that is missing or out of range, "
        "samples without a hash, symbols of another bundle",
    )
    add_engine(parser)
    add_meanwhile(parser)
    add_json(parser)
    return parser.parse_args(arguments)


def _load(
    bundle: Bundle, frames: Sequence[Frame], options: argparse.Namespace
) -> AbstractContextManager[Receiver | MeanwhileReceiver]:
    """What receives all frames."""
    names, threads, strict = options.providers, options.threads, options.strict
    if options.meanwhile is None:
        return load_receiver(bundle, names, threads, strict=strict, engine=options.engine)
    return load_meanwhile(
        bundle,
        names,
        threads,
        strict=strict,
        engine=options.engine,
        meanwhile=options.meanwhile,
        shapes=shapes_of(frames, options.size, bundle.manifest),
    )


def output_paths(path: Path, count: int) -> tuple[Path, ...]:
    """Where `count` images go: `path` itself, or numbered names beside it.

    Raises:
        UsageError: ``E_OUTPUT_KIND``, not a ``.png`` name.
    """
    if path.suffix.lower() != PNG:
        raise UsageError(
            "E_OUTPUT_KIND", f"output: got {str(path)!r}, expected NAME{PNG}. Rename it."
        )
    if count == 1:
        return (path,)
    return tuple(path.with_name(f"{path.stem}-{index:04d}{path.suffix}") for index in range(count))


def remarks(record: Record) -> list[str]:
    """What a human should know of how an image came about; nothing if all was as asked."""
    texts = [f"fell back: {reason}" for reason in record.fallbacks]
    if record.snr_clamped:
        texts.append(
            f"SNR {record.snr_db_declared:g} dB is outside the trained range, "
            f"{record.snr_db_used:g} dB was used"
        )
    if record.snr_suspect and record.snr_db_measured is not None:
        texts.append(
            f"SNR {record.snr_db_declared:g} dB was declared, the symbols speak for "
            f"{record.snr_db_measured:.1f} dB"
        )
    if record.missing:
        texts.append(f"{record.missing} of {record.symbols} symbols never arrived")
    return texts


def _pick(recording: Recording, number: int | None) -> tuple[Frame, ...]:
    if number is None:
        return recording.frames
    chosen = tuple(frame for frame in recording.frames if frame.number == number)
    if not chosen:
        present = ", ".join(str(frame.number) for frame in recording.frames[:10])
        raise UsageError("E_FRAME", f"--frame: got {number}, expected one of {present}. Pick one.")
    return chosen


def _check_origin(
    bundle: Bundle, recording: Recording, frames: Sequence[Frame], *, strict: bool
) -> None:
    """Remark on symbols of another bundle or without a hash; refuse them if `strict`."""
    if strict and not recording.hashed:
        raise SymbolsError(
            "E_SIGMF_HASH",
            "symbols: got no sha512 of the samples, expected one. Add core:sha512, or leave out "
            "--strict.",
        )
    for frame in frames:
        if frame.bundle is None or frame.bundle == bundle.sha256:
            continue
        text = (
            f"symbols, frame {frame.number}: got bundle {frame.bundle[:16]}, expected "
            f"{bundle.sha256[:16]}. Name the bundle that sent them."
        )
        if strict:
            raise SymbolsError("E_SYM_BUNDLE", text)
        notice(f"jscc receive: {text}")


def _know(bundle: Bundle, frame: Frame, options: argparse.Namespace) -> Known:
    """The channel state of `frame`: from the command line, else the file, else the default."""
    gain = options.gain if options.gain is not None else frame.gain
    if options.snr is not None:
        snr_db, source = options.snr, "option"
    elif frame.snr_db is not None:
        snr_db, source = frame.snr_db, "file"
    elif options.strict:
        raise CsiError(
            "E_SNR_MISSING",
            f"symbols, frame {frame.number}: got no SNR, expected one. Give --snr DB.",
        )
    else:
        snr_db, source = bundle.manifest.signal.snr_db_default, "default"
        notice(
            f"jscc receive: frame {frame.number}: nothing is known of the SNR, the bundle's "
            f"default of {snr_db:g} dB is used; give --snr DB"
        )
    return Known(Csi(snr_db, 1 + 0j if gain is None else gain), source)


def _row(path: Path, known: Known, record: Record) -> Mapping[str, object]:
    return {
        "gain": [known.csi.gain.real, known.csi.gain.imag],
        "output": display(path),
        "record": json.loads(record.to_json()),
        "snr_source": known.snr_source,
    }


def _cells(path: Path, size: tuple[int, ...], record: Record) -> tuple[str, ...]:
    return (
        display(path),
        f"{size[0]}x{size[1]}",
        f"{record.snr_db_used:g} dB",
        str(record.steps),
        f"{record.times_ms['total']:.0f}",
    )
