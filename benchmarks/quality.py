"""Quality: how good received images are, for each SNR, with the codec alone beside the whole.

Every image goes through the transmitter, a simulated radio channel and the receiver; PSNR, MS-SSIM
and LPIPS against the image that was sent are recorded row by row. An interrupted measurement
goes on where it stopped.
"""

import argparse
import hashlib
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from jscc.benchmarks.countdown import Countdown
from jscc.benchmarks.grid import Cell, GridRow, grid_png
from jscc.benchmarks.link import CHANNELS, Link, Received
from jscc.benchmarks.lpips import LPIPS_FILES, LPIPS_MIN_SIDE, Features, Lpips, load_lpips
from jscc.benchmarks.metrics import MS_SSIM_MIN_SIDE, Image, ms_ssim, psnr_db
from jscc.benchmarks.partial import Partial, Row
from jscc.benchmarks.report import finite, markdown_table, provenance, write_result
from jscc.runtime.bundle import Bundle
from jscc.runtime.commands.options import decibels, level, number, positive
from jscc.runtime.errors import UsageError
from jscc.runtime.image_files import decode_image
from jscc.runtime.loop import Choices
from jscc.runtime.output_files import check_destination, write_file
from jscc.runtime.terminal import say

SUFFIXES = (".png", ".webp", ".jpg", ".jpeg", ".bmp", ".ppm", ".tif", ".tiff")
METRICS = ("psnr_db", "ms_ssim", "lpips")
KEY = ("bundle", "sampler", "steps", "image", "snr_db", "seed")

Figures = dict[str, float | None]


@dataclass(frozen=True)
class Task:
    """What to measure.

    Attributes:
        bundles: Bundles, in the order of the tables.
        images: Image files.
        snrs_db: Channel SNRs.
        channel: Name of the channel.
        seeds: How many transmissions of each image at each SNR.
        settings: Ways to receive.
    """

    bundles: tuple[Path, ...]
    images: tuple[Path, ...]
    snrs_db: tuple[float, ...]
    channel: str
    seeds: int
    settings: tuple[Choices, ...]

    def __len__(self) -> int:
        """Rows that will be measured."""
        cases = len(self.images) * len(self.snrs_db) * self.seeds
        return cases * len(self.bundles) * len(self.settings)


class Judge:
    """Compares received images with the one that was sent.

    Args:
        image: What was sent.
        lpips: None leaves this metric out.
    """

    def __init__(self, image: Image, lpips: Lpips | None) -> None:
        self._image = image
        side = min(image.shape[:2])
        self._structure = side >= MS_SSIM_MIN_SIDE
        self._lpips = lpips if side >= LPIPS_MIN_SIDE else None
        self._features: Features = () if self._lpips is None else self._lpips.features(image)

    def __call__(self, received: Image) -> Figures:
        """The figures by name; None for a metric that the image is too small for."""
        distance = None
        if self._lpips is not None:
            distance = self._lpips.between(self._features, self._lpips.features(received))
        return {
            "psnr_db": finite(psnr_db(self._image, received)),
            "ms_ssim": ms_ssim(self._image, received) if self._structure else None,
            "lpips": distance,
        }


def measure(task: Task, lpips: Lpips | None, partial: Partial, threads: int | None) -> None:
    """Add the rows that `partial` lacks."""
    done = {tuple(row[name] for name in KEY) for row in partial.rows}
    bar = Countdown("quality", len(task), len(done))
    try:
        for index, path in enumerate(task.bundles):
            link = Link(path, task.channel, threads)
            for file in task.images:
                missing = [case for case in _cases(task, index, file) if case[0] not in done]
                if not missing:
                    continue
                image = read_image(file)
                judge = Judge(image, lpips)
                for row in _rows(link, image, judge, missing):
                    partial.add(row)
                    bar.advance()
    finally:
        bar.close()


Case = tuple[tuple[object, ...], Choices]


def _cases(task: Task, bundle: int, file: Path) -> Iterator[Case]:
    """Keys and settings of one image, transmissions outermost."""
    for snr_db in task.snrs_db:
        for seed in range(task.seeds):
            for setting in task.settings:
                key = (bundle, setting.sampler, setting.steps, file.name, snr_db, seed)
                yield key, setting


def _rows(link: Link, image: Image, judge: Judge, cases: Sequence[Case]) -> Iterator[Row]:
    """Measure `cases`; transmission and codec run once for all settings."""
    sent: tuple[object, ...] = ()
    received: Received | None = None
    alone: Figures | None = None
    for key, setting in cases:
        row: dict[str, Any] = dict(zip(KEY, key, strict=True))
        if received is None or key[-3:] != sent:
            sent = key[-3:]
            received = link.transmit(image, row["image"], row["snr_db"], row["seed"])
            codec = link.codec(received)
            alone = None if codec is None else judge(codec)
        output, record = link.receive(received, setting)
        pixels = image.shape[0] * image.shape[1]
        yield {
            **row,
            "height": image.shape[0],
            "width": image.shape[1],
            "cbr": received.symbols.size / (3 * pixels),
            "codec": alone,
            "received": judge(output),
            "ran": ", ".join(
                f"{loop.sampler}, {loop.steps} steps" for loop in record.loops.values()
            ),
            "snr_clamped": record.snr_clamped,
            "times_ms": dict(record.times_ms),
        }


def means(rows: Sequence[Row]) -> list[Row]:
    """Mean figures over images and seeds for each bundle, setting and SNR."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["bundle"], row["sampler"], row["steps"], row["snr_db"]), []).append(
            row
        )
    names = ("bundle", "sampler", "steps", "snr_db")
    return [
        {
            **dict(zip(names, key, strict=True)),
            "ran": group[0]["ran"],
            "rows": len(group),
            "cbr": statistics.fmean(row["cbr"] for row in group),
            "codec": _mean([row["codec"] for row in group]),
            "received": _mean([row["received"] for row in group]),
        }
        for key, group in groups.items()
    ]


def _mean(figures: Sequence[Figures | None]) -> Figures | None:
    """Mean of each metric; None where a row lacks it."""
    whole = [each for each in figures if each is not None]
    if len(whole) < len(figures):
        return None
    result: Figures = {}
    for name in METRICS:
        values = [value for each in whole if (value := each[name]) is not None]
        result[name] = statistics.fmean(values) if len(values) == len(whole) else None
    return result


def table(result: Mapping[str, Any]) -> str:
    """The means as a Markdown table."""
    several = len(result["bundles"]) > 1
    rows = []
    for mean in result["means"]:
        codec = mean["codec"] or dict.fromkeys(METRICS)
        name = f"{result['bundles'][mean['bundle']]['name']}, " if several else ""
        ran = mean["ran"] or "codec"
        pairs = [
            cell
            for metric, digits in zip(METRICS, (2, 4, 4), strict=True)
            for cell in (_cell(codec[metric], digits), _cell(mean["received"][metric], digits))
        ]
        rows.append((f"{name}{ran}", f"{mean['snr_db']:g}", *pairs))
    header = ("receiver", "SNR, dB")
    sides = (f"{what} {side}" for what in ("PSNR, dB,", "MS-SSIM,", "LPIPS,") for side in SIDES)
    return markdown_table((*header, *sides), rows)


SIDES = ("codec", "received")


def _cell(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def picture_rows(
    task: Task, names: Sequence[str], rows: Sequence[Row], threads: int | None
) -> list[GridRow]:
    """What was sent, the codec's image and the received one, for the first bundle and setting."""
    link = Link(task.bundles[0], task.channel, threads)
    found = {tuple(row[name] for name in KEY): row for row in rows}
    grid = []
    for file in task.images:
        if file.stem not in names:
            continue
        image = read_image(file)
        for key, setting in _cases(task, 0, file):
            row = found[key]
            if row["seed"] != 0 or setting != task.settings[0]:
                continue
            received = link.transmit(image, file.name, row["snr_db"], 0)
            codec = link.codec(received)
            cells = [Cell(image, ("sent",))]
            if codec is not None:
                cells.append(Cell(codec, ("codec alone", _caption(row["codec"]))))
            output, _ = link.receive(received, setting)
            cells.append(Cell(output, ("received", _caption(row["received"]))))
            grid.append(GridRow(f"{file.stem}, SNR {row['snr_db']:g} dB", tuple(cells)))
    return grid


def _caption(figures: Figures) -> str:
    psnr, distance = figures["psnr_db"], figures["lpips"]
    words = ["equal" if psnr is None else f"{psnr:.1f} dB"]
    return ", ".join(words if distance is None else [*words, f"LPIPS {distance:.3f}"])


def read_image(file: Path) -> Image:
    """Decode an image file to uint8 RGB."""
    return decode_image(file.name, file.read_bytes()).pixels


def find_images(folder: Path, limit: int | None) -> tuple[Path, ...]:
    """The image files of `folder` by name, the first `limit` of them.

    Raises:
        UsageError: ``E_IMAGES``, there is none.
    """
    files = sorted(f for f in folder.glob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
    if not files:
        raise UsageError(
            "E_IMAGES",
            f"--images: got no image in {str(folder)!r}, expected files that end in "
            f"{', '.join(SUFFIXES)}. Name the folder that holds them.",
        )
    return tuple(files[:limit])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``jscc bench quality``."""
    parser.add_argument("bundle", nargs="+", type=Path, help="bundles to compare")
    parser.add_argument("--images", type=Path, required=True, help="folder of images to send")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N of them")
    parser.add_argument("--snr", default="1,4,7,10,13", help="SNRs in dB, by commas")
    parser.add_argument("--channel", choices=CHANNELS, default="awgn")
    parser.add_argument(
        "--seeds", type=positive, default=1, metavar="N", help="transmissions of each image and SNR"
    )
    parser.add_argument("--steps", default="", help="numbers of steps, by commas")
    parser.add_argument("--sampler", default="", help="samplers, by commas")
    parser.add_argument("--start", choices=("noise", "received"), help="where the loop starts")
    parser.add_argument(
        "--start-level", type=level, metavar="X", help="share of the schedule, in (0, 1]"
    )
    parser.add_argument("--guidance", type=number, metavar="X", help="weight of the guide")
    parser.add_argument(
        "--lpips-weights", type=Path, help="folder of LPIPS weights; none: no LPIPS"
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="of the engine; default: all")
    parser.add_argument("--json", type=Path, required=True, help="write the result to this file")
    parser.add_argument("--grid", type=Path, help="write a picture of crops to this PNG")
    parser.add_argument("--grid-images", default="", help="names in it, by commas, without suffix")
    parser.add_argument("--grid-kb", type=positive, default=600, help="largest size of it")


def run(args: argparse.Namespace) -> int:
    """``jscc bench quality``: measure, write the result, print the table."""
    for path in filter(None, (args.json, args.grid)):
        check_destination(path, force=True)
    task = _task(args)
    lpips = None if args.lpips_weights is None else load_lpips(args.lpips_weights)
    head = _head(task, args)
    with Partial(args.json.with_name(f"{args.json.name}.partial"), head) as partial:
        measure(task, lpips, partial, args.threads)
        result = {**provenance(), **head, "rows": partial.rows, "means": means(partial.rows)}
        write_result(args.json, "quality", result)
        if args.grid is not None:
            names = items("--grid-images", args.grid_images, str)
            names = names or [file.stem for file in task.images[:2]]
            pictures = picture_rows(task, names, partial.rows, args.threads)
            write_file(args.grid, grid_png(pictures, 1000 * args.grid_kb), force=True)
        partial.discard()
    say(table(result))
    return 0


def _task(args: argparse.Namespace) -> Task:
    """What the options ask for."""
    samplers: list[str | None] = [*items("--sampler", args.sampler, str)] or [None]
    steps: list[int | None] = [*items("--steps", args.steps, positive)] or [None]
    settings = tuple(
        Choices(sampler, count, args.start, args.start_level, args.guidance)
        for sampler in samplers
        for count in steps
    )
    snrs_db = tuple(items("--snr", args.snr, decibels))
    images = find_images(args.images, args.limit)
    return Task(tuple(args.bundle), images, snrs_db, args.channel, args.seeds, settings)


Item = TypeVar("Item", str, int, float)


def items(option: str, text: str, kind: Callable[[str], Item]) -> list[Item]:
    """The items of `text`, separated by commas.

    Raises:
        UsageError: ``E_USAGE``, `kind` refuses one of them.
    """
    try:
        return [kind(item.strip()) for item in text.split(",") if item.strip()]
    except argparse.ArgumentTypeError as error:
        raise UsageError(
            "E_USAGE",
            f"{option}: got {text!r}, expected items between commas: {error}. Correct it.",
        ) from None


def _head(task: Task, args: argparse.Namespace) -> dict[str, object]:
    """All that decides the rows; names of files without their folders."""
    return {
        "bundles": [_describe(path) for path in task.bundles],
        "images": {"folder": args.images.resolve().name, "sha256": _digest(task.images)},
        "names": [file.name for file in task.images],
        "snrs_db": list(task.snrs_db),
        "channel": task.channel,
        "seeds": task.seeds,
        "settings": [asdict(setting) for setting in task.settings],
        "lpips": None
        if args.lpips_weights is None
        else _digest([args.lpips_weights / name for name in LPIPS_FILES]),
    }


def _describe(path: Path) -> dict[str, object]:
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    return {
        "name": path.name.removesuffix(".jscc"),
        "sha256": bundle.sha256,
        "system": manifest.system,
        "variant": manifest.variant,
        "precision": manifest.precision,
        "weights": manifest.source.sha256,
    }


def _digest(files: Sequence[Path]) -> str:
    """One hash of all bytes of `files`."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()
