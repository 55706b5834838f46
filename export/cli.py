"""Command ``jscc-export`` (also ``jscc export``): from a trained checkpoint to a bundle."""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from jscc.export.calibrated import FP8, INT8, add_calibration, export_calibrated, is_calibrated
from jscc.export.exporter import Order, export, raise_on_terminate
from jscc.export.extra import parse_extra
from jscc.export.gather import Request, gather
from jscc.export.recognise import family_names
from jscc.export.roles import architecture_names, own_tiny
from jscc.export.system import Options, System, find, names
from jscc.runtime.errors import JsccError, UsageError
from jscc.runtime.machine import peak_rss_mib

VAES = ("full", "tiny")

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jscc.runtime.bundle import Bundle


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    begun = time.monotonic()
    try:
        arguments = _parser().parse_args(argv)
        raise_on_terminate()
        if is_calibrated(arguments):
            return export_calibrated(sys.argv[1:] if argv is None else argv, arguments)
        bundle = _run(arguments)
    except JsccError as error:
        sys.stderr.write(f"jscc-export: {error}\n")
        return error.exit_status
    except KeyboardInterrupt:
        sys.stderr.write("jscc-export: interrupted, nothing was written.\n")
        return 130
    _report(bundle, time.monotonic() - begun)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jscc-export",
        allow_abbrev=False,  # a second command takes some of the options
        description="Convert a trained checkpoint into a bundle that runs without torch.",
    )
    parser.add_argument("--model", required=True, help=f"system: {', '.join(names())}")
    parser.add_argument(
        "--checkpoint",
        action="append",
        default=[],
        metavar="[ROLE=]FILE|DIR|HUB-ID|reference:NAME",
        help="trained weights; repeat it for each network of the system (its role is told by the "
        "weights, or written before them) or to merge files; default: the reference weights",
    )
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="[ROLE=]FILE|architecture:NAME",
        help="config.yaml; default: beside the checkpoint, where the weights do not tell it all; "
        f"architecture: is a published network of {', '.join(architecture_names())}",
    )
    parser.add_argument(
        "--codec",
        default="",
        metavar="FAMILY",
        help=f"what the codec is: {', '.join(family_names('codec'))}; default: told by the weights",
    )
    parser.add_argument("--revision", help="revision of a HUB-ID")
    parser.add_argument(
        "--random-weights",
        type=int,
        metavar="SEED",
        help="draw the weights that --config asks for instead of loading any, to measure speed",
    )
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[:WEIGHT]",
        help="low-rank change to merge into the diffusion UNet, such as a few-step student's "
        "(LCM-LoRA, TCD-LoRA: add --sampler lcm or tcd and --steps 4), or reference:NAME; may be "
        "repeated; default weight: 1",
    )
    parser.add_argument("--licence", default="unknown", help="licence of the weights, recorded")
    parser.add_argument("--text", choices=("none", "fixed", "side"), default="none")
    parser.add_argument("--prompt", default="", help="the text of --text fixed")
    parser.add_argument(
        "--vae",
        choices=VAES,
        default=VAES[0],
        help="autoencoder: the checkpoint's own, or a tiny one, which --tiny brings",
    )
    parser.add_argument(
        "--tiny",
        action="append",
        default=[],
        metavar="FILE|reference:NAME",
        help="weights of --vae tiny, in the format of TAESD, TAEF2 or diffusers' AutoencoderTiny; "
        "repeat it for encoder and decoder; default: the reference weights' own, with these",
    )
    parser.add_argument("--precision", choices=("fp32", "fp16", INT8, FP8), default="fp32")
    add_calibration(parser)
    parser.add_argument("--size", default="dynamic", metavar="HxW|dynamic")
    parser.add_argument(
        "--short-edge",
        type=int,
        default=0,
        metavar="PIXELS",
        help="enlarge smaller images before sending, as DiffJSCC's own script does with 512",
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="what this system alone lets you choose; an unknown name lists them; may be repeated",
    )
    parser.add_argument("--sampler", help="default sampler of the bundle")
    parser.add_argument("--steps", type=int, help="default number of steps")
    parser.add_argument("--start", choices=("noise", "received"), help="default start")
    parser.add_argument("--start-level", type=float, help="default level of --start received, 0-1")
    parser.add_argument("--force", action="store_true", help="replace an existing bundle")
    parser.add_argument("--single-file", action="store_true", help="write one file, not a folder")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.jscc")
    return parser


def _run(arguments: argparse.Namespace) -> Bundle:
    system = find(arguments.model)
    extra = parse_extra(arguments.option, system.options)
    if arguments.prompt and arguments.text != "fixed":
        raise UsageError(
            "E_TEXT",
            f"--prompt: got a prompt with --text {arguments.text}, expected --text fixed. "
            "Add --text fixed or leave the prompt out.",
        )
    source, defaults = gather(
        system,
        Request(
            checkpoints=tuple(arguments.checkpoint),
            configs=tuple(arguments.config),
            codec=arguments.codec,
            revision=arguments.revision,
            licence=arguments.licence,
            random_seed=arguments.random_weights,
            loras=tuple(arguments.lora),
            encodes_text=arguments.text == "fixed",
            tiny=_tiny(arguments, system),
        ),
    )
    order = Order(
        name=arguments.model,
        destination=arguments.output,
        precision=arguments.precision,
        size=parse_size(arguments.size),
        overwrite=arguments.force,
        single_file=arguments.single_file,
        options=Options(
            text=arguments.text,
            prompt=arguments.prompt,
            vae=arguments.vae,
            short_edge=arguments.short_edge,
            sampler=arguments.sampler or defaults.get("sampler"),
            steps=arguments.steps or defaults.get("steps"),
            start=arguments.start or defaults.get("start"),
            start_level=arguments.start_level
            if arguments.start_level is not None
            else defaults.get("start_level"),
            extra=extra,
        ),
    )
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    ) as bar:
        task = bar.add_task("reading", total=None)

        def progress(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total)

        return export(system, source, order, progress)


def _tiny(arguments: argparse.Namespace, system: System) -> tuple[str, ...]:
    """The files of the tiny autoencoder that is asked for."""
    files = tuple(arguments.tiny)
    random = arguments.random_weights is not None
    if arguments.vae == "tiny" and not files and not random:
        own = own_tiny(arguments.checkpoint, system.roles.get(""))
        files = (own,) if own else ()
    if bool(files) != (arguments.vae == "tiny" and not random):
        got = f"--tiny {files[0]}" if files else "no --tiny"
        raise UsageError(
            "E_VAE",
            f"--vae {arguments.vae}: got {got}{' and random weights' * random}, expected --vae "
            "tiny and the files of both halves of a tiny autoencoder. Give them together.",
        )
    return files


def parse_size(text: str) -> tuple[int, int] | None:
    """``512x768`` (height, width) to a pair, ``dynamic`` to None.

    Raises:
        UsageError: ``E_SIZE``, the text is neither.
    """
    if text == "dynamic":
        return None
    match = re.fullmatch(r"(\d{1,6})x(\d{1,6})", text)
    if match is None:
        raise UsageError(
            "E_SIZE", f"--size: got {text!r}, expected HEIGHTxWIDTH or 'dynamic'. Write 512x768."
        )
    return int(match[1]), int(match[2])


def _report(bundle: Bundle, seconds: float) -> None:
    manifest = bundle.manifest
    size = sum(entry.size for entry in manifest.files.values()) / 2**20
    lines = [f"{bundle.path}: {manifest.system}, {manifest.precision}, {size:.1f} MiB"]
    for stage, ports in sorted(manifest.parity.items()):
        for port, parity in sorted(ports.items()):
            lines.append(
                f"  {stage}/{port}: differs from torch by {parity.max_abs:.1e} at most "
                f"at {parity.size[0]}x{parity.size[1]}"
            )
    peak = peak_rss_mib()
    memory = "" if peak is None else f", peak memory {peak / 1024:.2f} GiB"
    lines.append(f"  exported in {seconds:.0f} s{memory}")
    sys.stdout.write("\n".join(lines) + "\n")
