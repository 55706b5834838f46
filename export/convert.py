"""Convert: command that extracts the tensors of a torch checkpoint into a safetensors file.

    python -m jscc.export.convert IN OUT.safetensors [--allow module.Class …]

For checkpoints that hold objects of unknown classes beside their tensors. The objects are left
out; no class is ever imported.
"""

import argparse
import errno
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from jscc.export.checkpoint import Checkpoint, read_checkpoint
from jscc.export.safetensors_file import encode_header
from jscc.runtime.errors import JsccError, OutputError, StorageError


def convert(source: Path, destination: Path, *, allow: tuple[str, ...] = ()) -> Checkpoint:
    """Write the tensors of `source` to `destination`, and return what was read.

    Args:
        source: Checkpoint file, or folder of one.
        destination: Safetensors file to make; written beside itself first, then renamed.
        allow: Exact names of the unknown classes whose objects may be left out.

    Raises:
        CheckpointError: As `read_checkpoint`.
        OutputError: ``E_EXISTS``, the destination exists; ``E_OUTPUT``, it cannot be made.
        StorageError: ``E_IO`` or ``E_DISK_FULL``, writing failed half-way.
    """
    if destination.exists() or destination.is_symlink():
        raise OutputError(
            "E_EXISTS",
            f"{str(destination)!r}: got an existing file, expected a new name. Choose another.",
        )
    checkpoint = read_checkpoint(source, allow=allow)
    metadata = {"format": "pt", "source": checkpoint.path.name, "source_sha256": checkpoint.sha256}
    try:
        scratch = tempfile.TemporaryDirectory(
            prefix=f".{destination.name}.", dir=destination.resolve().parent
        )
    except OSError as error:
        raise OutputError(
            "E_OUTPUT",
            f"{str(destination)!r}: got {error.strerror}, expected a folder to write in. "
            "Choose another.",
        ) from error
    with scratch as folder:
        _write(checkpoint.tensors, Path(folder) / "part", destination, metadata)
    return checkpoint


def _write(
    tensors: Mapping[str, torch.Tensor], part: Path, destination: Path, metadata: dict[str, str]
) -> None:
    """Write one tensor after the other, so that only one is in memory."""
    try:
        with part.open("wb") as stream:
            stream.write(encode_header(tensors, metadata))
            for tensor in tensors.values():
                stream.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(destination)
    except OSError as error:
        raise StorageError(
            "E_DISK_FULL" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "E_IO",
            f"{str(destination)!r}: got {error.strerror}, expected to write it. "
            "Make room on the disk, or choose another.",
        ) from error


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m jscc.export.convert", description=__doc__)
    parser.add_argument("source", type=Path, metavar="IN")
    parser.add_argument("destination", type=Path, metavar="OUT.safetensors")
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="module.Class",
        help="class whose objects may be left out; may be repeated",
    )
    options = parser.parse_args(arguments)
    try:
        made = convert(options.source, options.destination, allow=tuple(options.allow))
    except JsccError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_status
    left_out = ", ".join(made.extra_objects) or "nothing"
    sys.stdout.write(f"{options.destination}: {len(made.tensors)} tensors; left out {left_out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
