"""Report: what nvcc makes of the kernels, as a Markdown table.

``python -m jscc.kernels.report`` compiles each kernel for those of `ARCHITECTURES` that this nvcc
knows, warnings being errors, and prints what ptxas says: registers, stack and spilled bytes of a
thread, shared memory of a block. Needs a CUDA toolkit, no device; with 69 it says that there is
none.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jscc.kernels.sources import KERNELS, OPTIONS, source_of

# Turing, Ampere (A100, GA10x, Orin), Ada, Hopper and Blackwell (B200, GB20x).
ARCHITECTURES: Final = ("75", "80", "86", "87", "89", "90", "100", "120")
STRICT: Final = ("-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra,-Werror")
UNAVAILABLE: Final = 69

_CODE = re.compile(r"^sm_([0-9]+)$", re.MULTILINE)
_USE = re.compile(
    r"Compiling entry function '(?P<entry>\w+)' for 'sm_(?P<architecture>\d+)'\n"
    r".*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads\n"
    r".*?Used (?P<registers>\d+) registers(?:[^\n]*? (?P<shared>\d+) bytes smem)?",
    re.DOTALL,
)


@dataclass(frozen=True)
class Use:
    """What an entry needs on one architecture.

    Attributes:
        entry: Function that the device starts.
        architecture: Compute capability without its dot, such as ``90``.
        registers: Of 32 bits, of a thread.
        stack: Bytes of a thread.
        spilled: Bytes of a thread, written and read because registers did not suffice.
        shared: Bytes of a block's shared memory.
    """

    entry: str
    architecture: str
    registers: int
    stack: int
    spilled: int
    shared: int


def known_architectures(nvcc: str) -> tuple[str, ...]:
    """Those of `ARCHITECTURES` that this compiler knows.

    Raises:
        subprocess.CalledProcessError: It does not run.
    """
    listed = subprocess.run(
        [nvcc, "--list-gpu-code"], check=True, capture_output=True, text=True
    ).stdout
    known = set(_CODE.findall(listed))
    return tuple(name for name in ARCHITECTURES if name in known)


def compile_kernel(nvcc: str, kernel: str, architectures: Iterable[str]) -> tuple[Use, ...]:
    """Compile one kernel for `architectures` and read what ptxas says.

    Raises:
        subprocess.CalledProcessError: The source does not compile without a warning.
    """
    targets = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in architectures]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, f"{kernel}.cu")
        source.write_text(source_of(kernel), encoding="utf-8")
        command = [nvcc, "-fatbin", *OPTIONS, *STRICT, *targets, "-Xptxas", "-v"]
        said = subprocess.run(
            [*command, "-o", str(Path(folder, "out")), str(source)],
            check=True,
            capture_output=True,
            text=True,
        )
    return parse_uses(said.stdout + said.stderr)


def release_of(nvcc: str) -> str:
    """The compiler's release, such as ``13.0``.

    Raises:
        subprocess.CalledProcessError: It does not run.
    """
    said = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"release (\S+),", said)
    return found[1] if found else "unknown"


def parse_uses(text: str) -> tuple[Use, ...]:
    """What ``ptxas -v`` says of each entry on each architecture."""
    return tuple(
        Use(
            found["entry"],
            found["architecture"],
            int(found["registers"]),
            int(found["stack"]),
            int(found["stores"]) + int(found["loads"]),
            int(found["shared"] or 0),
        )
        for found in _USE.finditer(text)
    )


def markdown(uses: Sequence[Use]) -> str:
    """One row per entry: registers on each architecture, then the most of what else it needs."""
    names = [name for name in ARCHITECTURES if any(use.architecture == name for use in uses)]
    rows = [
        [
            "registers",
            *(f"sm_{name}" for name in names),
            "stack, bytes",
            "spills, bytes",
            "shared memory, bytes",
        ],
        ["---", *["--:"] * (len(names) + 3)],
    ]
    for entry in sorted({use.entry for use in uses}):
        own = {use.architecture: use for use in uses if use.entry == entry}
        registers = [str(own[name].registers) if name in own else "" for name in names]
        most = [
            str(max(getattr(use, what) for use in own.values()))
            for what in ("stack", "spilled", "shared")
        ]
        rows.append([entry, *registers, *most])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(arguments: Sequence[str]) -> int:
    """Print the table; 69 without a compiler, 1 where a kernel does not compile."""
    parser = argparse.ArgumentParser(prog="python -m jscc.kernels.report", description=__doc__)
    parser.add_argument("--nvcc", default="nvcc", help="the compiler; by default that of PATH")
    options = parser.parse_args(arguments)
    nvcc = shutil.which(options.nvcc)
    if nvcc is None:
        sys.stderr.write(
            f"nvcc: got no program {options.nvcc!r}, expected that of a CUDA toolkit. Install one, "
            "or name it with --nvcc.\n"
        )
        return UNAVAILABLE
    try:
        architectures = known_architectures(nvcc)
        uses = [use for name in KERNELS for use in compile_kernel(nvcc, name, architectures)]
        release = release_of(nvcc)
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"{error.stdout}{error.stderr}")
        return 1
    sys.stdout.write(f"{markdown(uses)}\n\nnvcc {release}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
