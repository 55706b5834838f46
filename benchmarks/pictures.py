"""Pictures: what was sent and what was received, drawn again from what a measurement recorded.

A measurement keeps figures, no pixels; everything random in it hangs on names and seeds, so the
same bundle makes the same pictures.
"""

from collections.abc import Sequence

from jscc.benchmarks.grid import Cell, GridRow
from jscc.benchmarks.link import Link
from jscc.benchmarks.partial import Row
from jscc.benchmarks.sweep import Sweep, key_of
from jscc.benchmarks.titles import Figures
from jscc.calibration.images import read_image


def picture_rows(
    sweep: Sweep, names: Sequence[str], rows: Sequence[Row], threads: int | None, engine: str
) -> list[GridRow]:
    """What was sent, the codec's image and the received one, for the first bundle and setting."""
    first = sweep.variants[0]
    link = Link(first.path, sweep.channel, threads, first.sides, engine)
    found = {key_of(row): row for row in rows}
    grid = []
    for bundle, file, snr_db, cases in sweep.cases():
        if bundle > 0 or file.stem not in names:
            continue
        case = cases[0]
        row = found[case.key]
        image = read_image(file)
        rate, name, _, seed = case.sent
        arrived = link.transmit(image, name, snr_db, seed, rate)
        codec = link.codec(arrived)
        cells = [Cell(image, ("sent",))]
        if codec is not None:
            cells.append(Cell(codec, ("codec alone", caption(row["codec"]))))
        output, _ = link.receive(arrived, case.choices)
        cells.append(Cell(output, ("received", caption(row["received"]))))
        grid.append(GridRow(f"{file.stem}, SNR {snr_db:g} dB", tuple(cells)))
    return grid


def caption(figures: Figures) -> str:
    """The figures that stand under a picture."""
    psnr, distance = figures["psnr_db"], figures["lpips"]
    words = ["equal" if psnr is None else f"{psnr:.1f} dB"]
    return ", ".join(words if distance is None else [*words, f"LPIPS {distance:.3f}"])
