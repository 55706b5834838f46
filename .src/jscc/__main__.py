"""jscc: the command line; finds the command's module by name and runs it.

Only the module of the command that was asked for is imported, so a device without torch can
receive, and ``jscc --help`` answers at once.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence

from jscc.runtime.errors import UsageError
from jscc.runtime.machine import software
from jscc.runtime.terminal import Main, run, say, table

COMMANDS = {
    "inspect": ("jscc.runtime.commands.inspect", "show what a bundle holds"),
    "send": ("jscc.runtime.commands.send", "turn images into channel symbols"),
    "channel": ("jscc.runtime.commands.channel", "pass symbols through a simulated radio channel"),
    "receive": ("jscc.runtime.commands.receive", "turn received symbols into images"),
    "simulate": ("jscc.runtime.commands.simulate", "send, channel and receive in one go"),
    "build": ("jscc.runtime.commands.build", "compile a bundle's graphs for a GPU (TensorRT)"),
    "choose": ("jscc.runtime.commands.choose", "find the fastest engine for a bundle here"),
    "doctor": ("jscc.runtime.commands.doctor", "show what this machine can run"),
    "calibrate": ("jscc.calibration.cli", "lower the precision of a bundle (int8, fp8, fp16)"),
    "tune": ("jscc.calibration.tune_cli", "fit a bundle's steps to the channel"),
    "bench": ("jscc.benchmarks.cli", "measure a bundle on this machine"),
    "export": ("jscc.export.cli", "turn a trained checkpoint into a bundle (needs torch)"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``jscc <command> …`` and return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else "--help"
    if name in COMMANDS:
        return run(f"jscc {name}", _load(COMMANDS[name][0]), arguments[1:])
    return run("jscc", _top, arguments)


def export() -> int:
    """Run ``jscc-export …``, the same as ``jscc export …``."""
    return main(["export", *sys.argv[1:]])


def _load(module: str) -> Main:
    """The command's main; the import waits for the call, so that its errors meet `run`."""

    def call(arguments: Sequence[str]) -> int:
        command: Main = importlib.import_module(module).main
        return command(arguments)

    return call


def _top(arguments: Sequence[str]) -> int:
    """Answer a call that names no command."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        rows = [(f"  {name}", what) for name, (_, what) in COMMANDS.items()]
        say(f"usage: jscc COMMAND …\n\n{table(rows)}\n\njscc COMMAND --help tells more.")
        return 0 if arguments else UsageError.exit_status
    if arguments[0] in ("-V", "--version"):
        say(software())
        return 0
    close = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
    hint = f"Did you mean {close[0]}?" if close else "See jscc --help."
    raise UsageError(
        "E_USAGE", f"command: got {arguments[0]!r}, expected {', '.join(COMMANDS)}. {hint}"
    )


if __name__ == "__main__":
    sys.exit(main())
