"""Checkpoint: the named tensors of a trained model's file, read without running any of it.

Torch files (zip and the older stream) and safetensors are told apart by their content, never by
their name. Tensors stay in the file until they are asked for, so that optimizer states and other
passengers cost nothing.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from jscc.export.config import read_config, section
from jscc.export.load import add_prefix, is_bare_controlnet, load_into, merge, select
from jscc.export.pickles import Table, Value
from jscc.export.safetensors_file import read_safetensors
from jscc.export.tensor_file import OpenFile, StoredTensor, StoredTensors
from jscc.export.torch_file import LEGACY_NUMBER, TorchFile, read_legacy, read_zip
from jscc.export.torch_pickle import Strided
from jscc.runtime.errors import CheckpointError

__all__ = [
    "Checkpoint",
    "add_prefix",
    "is_bare_controlnet",
    "load_into",
    "merge",
    "read_checkpoint",
    "read_config",
    "section",
    "select",
]

NAMES = ("model.safetensors", "model.ckpt")  # in a folder; the first one there is read
WRAPPER = "module."  # put before every name by torch's DataParallel
HALVES = ("encoder", "decoder")  # state dicts of their own where a trainer saves both networks
AVERAGED = "g_ema"  # the generator that is meant to be used, of a GAN's checkpoint
AVERAGE = "latent_avg"  # and the centre of its latents
MAX_LISTED = 10
HEAD = 512  # bytes by which a format is recognised

_OTHER_FORMATS = (
    (b"\x89HDF", "an HDF5 file"),
    (b"GGUF", "a GGUF file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x1f\x8b", "a gzip file"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"PK\x05\x06", "an empty zip file"),
    (b"\x80", "a pickle that torch.save did not write"),
)


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a trained model.

    Attributes:
        path: The file that holds them.
        tensors: By name; each look-up reads that tensor anew from the file.
        container: ``torch-zip``, ``torch-legacy`` or ``safetensors``.
        extra_objects: Names of the classes whose objects were left out, unbuilt.
        ignored: What lies beside the tensors: top-level keys, and entries that are no tensor.
        file: The open file.
    """

    path: Path
    tensors: Mapping[str, torch.Tensor]
    container: str
    extra_objects: tuple[str, ...]
    ignored: tuple[str, ...]
    file: OpenFile

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file in hexadecimal; read through on first use (1.7 s per GB).

        Raises:
            CheckpointError: ``E_CKPT_CHANGED``, the file changed since it was opened.
        """
        return self.file.sha256()


def read_checkpoint(path: Path, *, allow: tuple[str, ...] = ()) -> Checkpoint:
    """Read what `path` holds: a checkpoint, or a folder with one beside its ``config.yaml``.

    Nothing in the file is run, whatever it is. Objects of known harmless classes (Lightning
    callbacks, ``argparse.Namespace``, …) are left out and listed.

    Args:
        path: File, or folder with ``model.safetensors`` or ``model.ckpt``.
        allow: Names of further classes whose objects may be left out, ``module.Class``.

    Raises:
        CheckpointError: ``E_CKPT_NOT_FOUND``, ``E_CKPT_FILETYPE``, ``E_CKPT_EMPTY``,
            ``E_CKPT_LFS_POINTER``, ``E_CKPT_HTML``, ``E_CKPT_TRUNCATED``, ``E_CKPT_FORMAT``,
            ``E_CKPT_BOMB``, ``E_CKPT_UNSAFE``, ``E_CKPT_EXTRA_OBJECTS``, ``E_CKPT_LAYOUT``,
            ``E_CKPT_CHANGED``.
        StorageError: ``E_IO``, the file cannot be opened or read.
    """
    file = OpenFile(_find(path))
    container = _recognise(file)
    if container == "safetensors":
        return _finish(file, read_safetensors(file), container, (), ())
    content = (read_zip if container == "torch-zip" else read_legacy)(file, allow)
    entries, ignored = _state_dict(file, content)
    return _finish(file, entries, container, content.extra_objects, ignored)


def _find(path: Path) -> Path:
    if not os.path.isdir(path):  # Path.is_dir raises for a name too long
        return path
    for name in NAMES:
        if (path / name).exists():
            return path / name
    raise CheckpointError(
        "E_CKPT_NOT_FOUND",
        f"{str(path)!r}: got a folder without {' or '.join(NAMES)}, expected one of them beside "
        "config.yaml. Give the checkpoint file itself.",
    )


def _recognise(file: OpenFile) -> str:
    """The container's name, by its first bytes."""
    head = file.read(0, min(HEAD, file.size))
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        raise _refused(file, "E_CKPT_EMPTY", "an empty file", "Fetch it again.")
    if head.startswith(b"version https://git-lfs"):
        raise _refused(
            file, "E_CKPT_LFS_POINTER", "a git-lfs pointer", "Run git lfs pull where it lies."
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<!--")):
        raise _refused(
            file, "E_CKPT_HTML", "a web page", "Open it to see why; then fetch the file itself."
        )
    if head.startswith(b"PK\x03\x04"):
        return "torch-zip"
    if head.startswith(b"\x80") and LEGACY_NUMBER in head[:32]:
        return "torch-legacy"
    if len(head) > 8 and head[8:9] == b"{":
        return "safetensors"
    if len(head) < 9 or (b"\x80\x02" + LEGACY_NUMBER).startswith(head):
        raise _refused(file, "E_CKPT_TRUNCATED", f"{file.size} bytes", "Fetch it again.")
    names = (name for start, name in _OTHER_FORMATS if head.startswith(start))
    got = "a tar archive" if head[257:262] == b"ustar" else next(names, ascii(head[:8].hex(" ")))
    raise _refused(file, "E_CKPT_FORMAT", got, "Give the .ckpt, .pt or .safetensors file.")


def _refused(file: OpenFile, code: str, got: str, remedy: str) -> CheckpointError:
    return CheckpointError(
        code,
        f"{str(file.path)!r}: got {got}, expected a torch or safetensors checkpoint. {remedy}",
    )


def _state_dict(
    file: OpenFile, content: TorchFile
) -> tuple[dict[str, StoredTensor], tuple[str, ...]]:
    """The tensors of the object's state dict or state dicts, and what lies beside them."""
    if not isinstance(content.root, Table):
        raise _layout(file, f"a {type(content.root).__name__}")
    outer = content.root.named()
    used = _state_dicts(file, content.root, outer)
    entries: dict[str, StoredTensor] = {}
    left = [key for key in outer if used and key not in used]
    for name, prefix in used.items() or (("", ""),):
        table = outer[name] if name else content.root
        if any(type(key) is not str for key, _ in table.pairs):
            raise _layout(file, "a state dict whose keys are not all text")
        for key, value in table.named().items():
            if isinstance(value, Strided):
                entries[prefix + key] = content.locate(prefix + key, value)
            else:
                left.append(prefix + key)
    if AVERAGED in used:  # lies beside its generator
        average = outer.get(AVERAGE)
        if isinstance(average, Strided):
            entries[AVERAGE] = content.locate(AVERAGE, average)
            left.remove(AVERAGE)
    return entries, tuple(left)


def _state_dicts(file: OpenFile, root: Table, outer: Mapping[str, Value]) -> dict[str, str]:
    """The keys of `outer` that hold state dicts, and the prefix that the names of each get.

    None of them where the object itself is the state dict.
    """
    if "state_dict" in outer:
        table = outer["state_dict"]
        if not (isinstance(table, Table) and table.pairs):
            raise _layout(file, f"an object whose 'state_dict' is {_kind(table)}")
        return {"state_dict": ""}
    if all(_holds_tensors(outer.get(half)) for half in HALVES):
        return {half: f"{half}." for half in HALVES}
    if _holds_tensors(outer.get(AVERAGED)):
        return {AVERAGED: ""}
    if any(map(_holds_tensors, outer.values())) or not _holds_tensors(root):
        keys = ", ".join(repr(key)[:50] for key in list(outer)[:MAX_LISTED]) or "none"
        raise _layout(file, f"a dict with the keys {keys}")
    return {}


def _holds_tensors(value: Value | None) -> bool:
    return isinstance(value, Table) and any(isinstance(item, Strided) for _, item in value.pairs)


def _kind(value: Value) -> str:
    return "empty" if isinstance(value, Table) else f"a {type(value).__name__}"


def _layout(file: OpenFile, got: str) -> CheckpointError:
    return CheckpointError(
        "E_CKPT_LAYOUT",
        f"{str(file.path)!r}: got {got}, expected 'state_dict' or a dict of tensors. "
        "Save the model's state_dict() as a file of its own.",
    )


def _finish(
    file: OpenFile,
    entries: Mapping[str, StoredTensor],
    container: str,
    extra_objects: tuple[str, ...],
    ignored: tuple[str, ...],
) -> Checkpoint:
    if not entries:
        raise _layout(file, "no tensors")
    if all(name.startswith(WRAPPER) for name in entries):
        entries = {name.removeprefix(WRAPPER): entry for name, entry in entries.items()}
    tensors = StoredTensors(entries)
    return Checkpoint(file.path, tensors, container, extra_objects, ignored, file)
