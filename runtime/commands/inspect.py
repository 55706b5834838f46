"""jscc inspect: what a bundle holds; opening it verifies every file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from jscc.runtime.bundle import Bundle
from jscc.runtime.commands.options import add_json, display, make_parser
from jscc.runtime.manifest import Manifest, serialise_manifest
from jscc.runtime.manifest_loops import Descent, Loop, Regime
from jscc.runtime.sides import side_outputs
from jscc.runtime.terminal import pairs, say, say_json, table


def main(arguments: Sequence[str]) -> int:
    """Run ``jscc inspect BUNDLE``."""
    parser = make_parser("inspect", "Show what a bundle holds. Every file is verified first.")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    add_json(parser)
    options = parser.parse_args(arguments)
    bundle = Bundle.open(options.bundle)
    if options.json:
        say_json(_document(bundle))
    else:
        say(_text(bundle))
    return 0


def _document(bundle: Bundle) -> Mapping[str, object]:
    """The manifest with what follows from it."""
    manifest = bundle.manifest
    return {
        "bundle": bundle.sha256,
        "cbr": cbr(manifest),
        "manifest": json.loads(serialise_manifest(manifest)),
        "size": sum(entry.size for entry in manifest.files.values()),
    }


def cbr(manifest: Manifest) -> float:
    """Channel bandwidth ratio: complex channel uses per source sample of the padded image."""
    return manifest.signal.planes / (2 * 3 * manifest.signal.stride**2)


def _text(bundle: Bundle) -> str:
    manifest = bundle.manifest
    parts = [
        pairs(_head(bundle)),
        "Signal\n" + pairs(_signal(manifest)),
        "Stages\n" + table(_stages(manifest), header=True),
    ]
    parts += [f"Loop {name}\n" + pairs(_loop(loop)) for name, loop in manifest.loops.items()]
    parts += [f"Descent {key}\n" + pairs(_descent(each)) for key, each in manifest.descents.items()]
    if manifest.parity:
        parts.append("Parity to torch\n" + table(_parity(manifest), header=True))
    for title, card in (("Quality", manifest.quality), ("Calibration", manifest.calibration)):
        if card is not None:
            parts.append(f"{title}\n" + json.dumps(card, indent=2, sort_keys=True))
    return "\n\n".join(parts)


def _head(bundle: Bundle) -> dict[str, str]:
    manifest = bundle.manifest
    size = sum(entry.size for entry in manifest.files.values())
    return {
        "bundle": display(bundle.path),
        "sha256": bundle.sha256,
        "system": f"{manifest.system} ({manifest.variant})",
        "made by": manifest.made_by,
        "weights": f"{manifest.source.name}, sha256 {manifest.source.sha256[:16]}…",
        "licence": manifest.source.licence,
        "overrides": ", ".join(manifest.source.overrides) or "none",
        "precision": manifest.precision,
        "size": f"{_size(size)} in {len(manifest.files)} files, all verified",
        "program": " -> ".join(_program(manifest)),
        "side inputs": ", ".join(_sides(manifest)) or "none",
        "selftest": f"yes, {manifest.selftest.psnr_floor_db:g} dB or more"
        if manifest.selftest
        else "none",
    }


def _sides(manifest: Manifest) -> list[str]:
    sent = {port.name for port in side_outputs(manifest)}
    return [f"{name} (sent)" if name in sent else name for name in manifest.side_inputs]


def _signal(manifest: Manifest) -> dict[str, str]:
    signal, image = manifest.signal, manifest.image
    low, high = signal.snr_db_range
    least, most = signal.power_range
    tile = f"tiles of {image.tile} px, {image.overlap} px overlap" if image.tile else "never tiled"
    return {
        "symbols": f"{signal.planes // 2} for each {signal.stride}x{signal.stride} pixels",
        "cbr": f"{cbr(manifest):.6g} (1/{1 / cbr(manifest):.4g})",
        **_rates(manifest),
        "power": f"{signal.power}, {least:g} to {most:g} accepted",
        "SNR": f"{low:g} to {high:g} dB, {signal.snr_db_default:g} dB where nothing is said",
        "receiver is told": ", ".join(signal.csi_inputs) or "nothing",
        "transmitter is told": "the same" if signal.transmitter_csi else "nothing",
        "equalisation": signal.equalisation,
        "image": f"padded to multiples of {image.multiple} px, at most {image.max_pixels} px",
        "tiling": tile,
    }


def _rates(manifest: Manifest) -> dict[str, str]:
    """What the transmitter may choose, if anything."""
    signal = manifest.signal
    texts = [f"{rate} (cbr 1/{6 * signal.stride**2 / rate:.4g})" for rate in signal.rates]
    return {"rates": f"{', '.join(texts)} planes"} if texts else {}


def _stages(manifest: Manifest) -> list[tuple[str, ...]]:
    """A row for each port; what belongs to the whole stage stands in the first."""
    rows: list[tuple[str, ...]] = [("stage", "size", "tiled", "", "port", "type")]
    program = _program(manifest)
    others = [name for name in manifest.stages if name not in program]
    for name in (*others, *program):
        stage = manifest.stages[name]
        data = f"{stage.graph}.data"
        size = sum(e.size for file, e in manifest.files.items() if file in (stage.graph, data))
        head = (name, _size(size), "yes" if stage.tiled else "no")
        for side, ports in (("in", stage.inputs), ("out", stage.outputs)):
            for port in ports:
                rows.append((*head, side, port.name, str(port)))
                head = ("", "", "")
    return rows


def _program(manifest: Manifest) -> list[str]:
    """The stages of the receiver, in order."""
    return list(manifest.receiver_stages)


def _size(count: int) -> str:
    """`count` bytes for a human."""
    for unit, factor in (("MiB", 2**20), ("KiB", 2**10)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"


def _loop(loop: Loop) -> dict[str, str]:
    sampler, schedule = loop.sampler, loop.schedule
    start: str = sampler.start
    if sampler.start == "received":
        level = "as the SNR says" if sampler.start_level is None else f"{sampler.start_level:g}"
        start += f" ({loop.start}, level {level})"
    ways = f"{sampler.name}, {sampler.steps} steps"
    if sampler.travel[1] > 1:
        ways += f", each {sampler.travel[0]} run {sampler.travel[1]} times"
    knobs = ", ".join(f"{name}={value:g}" for name, value in sorted(loop.settings.items()))
    regimes = "; ".join(map(_regime, sampler.regimes))
    levels = "; ".join(" ".join(map(str, reversed(each))) for each in sampler.levels)
    return {
        "sampler": ways,
        **({"by SNR": regimes} if regimes else {}),
        **({"own noise levels": levels} if levels else {}),
        "start": start,
        "guidance": _guidance(loop),
        **({"settings": knobs} if knobs else {}),
        "schedule": f"{schedule.kind}, {schedule.timesteps} timesteps, betas {schedule.first:g} to "
        f"{schedule.last:g}",
    }


def _regime(regime: Regime) -> str:
    if regime.steps == 0:
        return f"from {regime.snr_db:g} dB the codec alone"
    level = "" if regime.start_level is None else f" at level {regime.start_level:g}"
    return f"from {regime.snr_db:g} dB {regime.steps} steps from {regime.start}{level}"


def _guidance(loop: Loop) -> str:
    sampler = loop.sampler
    points = sampler.guidance_by_snr
    weights = ", ".join(f"{weight:g} at {snr_db:g} dB" for snr_db, weight in points)
    text = weights or f"{sampler.guidance:g}"
    text += f" toward {loop.guide}" if loop.guide else ""
    if not loop.guides:
        return text
    every = f" every {sampler.guide_every} steps" if sampler.guide_every > 1 else ""
    return f"{text} by {sampler.guide or 'none'}{every} of {', '.join((*loop.guides, 'none'))}"


def _descent(descent: Descent) -> dict[str, str]:
    knobs = ", ".join(f"{name}={value:g}" for name, value in sorted(descent.settings.items()))
    rounds = descent.rounds
    return {
        "rounds": ", ".join(f"{each.steps} steps of {each.gradient}" for each in rounds),
        "learning rate": ", ".join(f"{each.learning_rate:g}" for each in rounds),
        "variables": ", ".join(sorted(descent.variables)),
        "kept": f"the {descent.keep} of the last round",
        **({"settings": knobs} if knobs else {}),
    }


def _parity(manifest: Manifest) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("stage", "output", "largest difference", "PSNR", "at")]
    for stage, outputs in manifest.parity.items():
        for port, entry in outputs.items():
            psnr = "equal" if entry.psnr_db is None else f"{entry.psnr_db:.1f} dB"
            at = f"{entry.size[0]}x{entry.size[1]}"
            rows.append((stage, port, f"{entry.max_abs:.1e}", psnr, at))
    return rows
