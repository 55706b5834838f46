"""Panels: rows of pictures out of several results, made again and held to what was recorded."""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from jscc.benchmarks.grid import Cell, GridRow
from jscc.benchmarks.link import Link
from jscc.benchmarks.pictures import caption
from jscc.benchmarks.series import (
    Result,
    alone_label,
    is_cbr,
    label_of,
    read_result,
    shown_names,
)
from jscc.benchmarks.sweep import fraction, items, one, snrs_from
from jscc.benchmarks.titles import Figures
from jscc.calibration.images import find_images, read_image
from jscc.calibration.metrics import Image, psnr_db
from jscc.runtime.bundle import Bundle
from jscc.runtime.choices import Choices
from jscc.runtime.errors import DataError, UsageError

TOLERANCE_DB = 0.05  # other processors round differently


@dataclass(frozen=True)
class Scene:
    """What every column of a grid shows.

    Attributes:
        images: By stem, with the name of the file.
        snrs_db: Channel SNRs.
        cbr: Which of the results' cbrs.
        bundles: Folder of the bundles.
    """

    images: Mapping[str, tuple[str, Image]]
    snrs_db: tuple[float, ...]
    cbr: Fraction
    bundles: Path | None

    def places(self) -> Iterator[tuple[str, float]]:
        """Rows of the grid."""
        return ((stem, snr_db) for stem in self.images for snr_db in self.snrs_db)


@dataclass(frozen=True)
class Panel:
    """One picture of a grid, with the figures that were recorded for it."""

    label: str
    place: tuple[str, float]
    pixels: Image
    figures: Figures


def panel_rows(args: argparse.Namespace) -> list[GridRow]:
    """The rows that the options of ``jscc bench plot --kind grid`` ask for.

    Raises:
        UsageError: ``E_PLOT``, an option is missing or nothing was measured there.
        DataError: ``E_RESULT``, a bundle is not the one that was measured, or a picture came out
            differently.
    """
    results = [read_result(path) for path in args.result]
    names = shown_names(results, args)
    scene = _scene(args)
    cells = {
        (stem, snr_db): [Cell(scene.images[stem][1], ("sent",))] for stem, snr_db in scene.places()
    }
    drawn: set[tuple[str, tuple[str, float]]] = set()
    for result in results:
        draw = _quality if result["kind"] == "quality" else _digital
        for panel in draw(result, scene, names):
            if (panel.label, panel.place) not in drawn:
                drawn.add((panel.label, panel.place))
                _check(panel, scene)
                words = (names[panel.label], caption(panel.figures))
                cells[panel.place].append(Cell(panel.pixels, words))
    if not drawn:
        raise UsageError(
            "E_PLOT",
            f"plot: got no picture at cbr {scene.cbr} and SNR {args.snr} dB, expected some. "
            "Choose what was measured.",
        )
    return [
        GridRow(f"{stem}, SNR {snr_db:g} dB", tuple(row)) for (stem, snr_db), row in cells.items()
    ]


def _scene(args: argparse.Namespace) -> Scene:
    if args.images is None:
        raise UsageError(
            "E_PLOT", "plot: got no --images, expected the folder of what was sent. Name it."
        )
    files = {file.stem: file for file in find_images(args.images, None)}
    stems = items("--names", args.names, str) or list(files)[:2]
    for stem in stems:
        if stem not in files:
            raise UsageError(
                "E_PLOT", f"--names: got {stem!r}, expected images of --images. Correct the name."
            )
    images = {stem: (files[stem].name, read_image(files[stem])) for stem in stems}
    return Scene(images, snrs_from(args.snr), one("--cbr", args.cbr, fraction), args.bundles)


def _quality(result: Result, scene: Scene, names: Mapping[str, str]) -> Iterator[Panel]:
    """Every bundle's pictures, one bundle loaded at a time."""
    rows = {
        (row["bundle"], row["setting"], row["image"], row["snr_db"]): row
        for row in result["rows"]
        if row["seed"] == 0 and is_cbr(row["cbr"], scene.cbr)
    }
    means = {
        (mean["bundle"], mean["setting"]): mean
        for mean in result["means"]
        if is_cbr(mean["cbr"], scene.cbr)
    }
    for number in sorted({bundle for bundle, _ in means}):
        own = {setting: mean for (bundle, setting), mean in means.items() if bundle == number}
        labels = {setting: label_of(result, mean) for setting, mean in own.items()}
        alone = alone_label(result, next(iter(own.values())))
        if not {alone, *labels.values()} & set(names):
            continue
        link = _link(result, number, scene)
        for place in scene.places():
            key = scene.images[place[0]][0], place[1]
            keys = {setting: (number, setting, *key) for setting in own}
            found = {setting: rows[k] for setting, k in keys.items() if k in rows}
            yield from _of_bundle(result, link, scene, place, found, labels, alone, names)


def _of_bundle(
    result: Result,
    link: Link,
    scene: Scene,
    place: tuple[str, float],
    rows: Mapping[int, Mapping[str, Any]],
    labels: Mapping[int, str],
    alone: str,
    names: Mapping[str, str],
) -> Iterator[Panel]:
    """The codec's picture and those of all settings."""
    if not rows:
        return
    name, image = scene.images[place[0]]
    first = next(iter(rows.values()))
    arrived = link.transmit(image, name, place[1], 0, first["rate"])
    codec = link.codec(arrived) if alone in names else None
    if codec is not None:
        yield Panel(alone, place, codec, first["codec"])
    for setting, row in rows.items():
        if labels[setting] in names:
            choices = _choices(result["bundles"][row["bundle"]]["settings"][setting])
            output, _ = link.receive(arrived, choices)
            yield Panel(labels[setting], place, output, row["received"])


def _link(result: Result, number: int, scene: Scene) -> Link:
    """The bundle that was measured.

    Raises:
        UsageError: ``E_PLOT``, nobody says where it is.
        DataError: ``E_RESULT``, what is there is another.
    """
    recorded = result["bundles"][number]
    if scene.bundles is None:
        raise UsageError(
            "E_PLOT", "plot: got no --bundles, expected the folder of the bundles. Name it."
        )
    path = scene.bundles / f"{recorded['name']}.jscc"
    sha256 = Bundle.open(path).sha256
    if sha256 != recorded["sha256"]:
        raise DataError(
            "E_RESULT",
            f"bundle {path.name!r}: got {sha256[:10]}…, expected {recorded['sha256'][:10]}…, which "
            "the result was measured with. Name the folder that has it, or measure again.",
        )
    return Link(path, result["channel"], None)


def _choices(recorded: Mapping[str, Any]) -> Choices:
    """Settings as a result has them."""
    travel = recorded.get("travel")
    return Choices(**{**recorded, "travel": None if travel is None else (travel[0], travel[1])})


def _digital(result: Result, scene: Scene, names: Mapping[str, str]) -> Iterator[Panel]:
    """The baselines' pictures; grey where nothing arrived."""
    # The libraries behind the baselines are not needed for other results.
    from jscc.benchmarks.digital.schemes import Sender

    titles = {scheme["name"]: scheme["title"] for scheme in result["schemes"]}
    rows = {
        (row["scheme"], row["image"], row["snr_db"]): row
        for row in result["rows"]
        if row["seed"] == 0 and Fraction(row["cbr"]) == scene.cbr
    }
    for stem, (name, image) in scene.images.items():
        sender = Sender(image, result["channel"])
        for scheme, label in titles.items():
            for snr_db in scene.snrs_db:
                row = rows.get((scheme, name, snr_db))
                if label in names and row is not None:
                    sent = sender.send(scheme, scene.cbr, name, snr_db, 0)
                    shown = sender.show(sent.arrived)
                    yield Panel(label, (stem, snr_db), shown, row["received"])


def _check(panel: Panel, scene: Scene) -> None:
    """Hold a picture to its figures."""
    name, image = scene.images[panel.place[0]]
    expected = panel.figures["psnr_db"]
    got = psnr_db(image, panel.pixels)
    if expected is not None and abs(got - expected) > TOLERANCE_DB:
        raise DataError(
            "E_RESULT",
            f"{panel.label}, {name!r} at {panel.place[1]:g} dB: got {got:.2f} dB, expected the "
            f"recorded {expected:.2f} dB. Measure again on this machine.",
        )
