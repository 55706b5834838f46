"""Bundle: a verified system, held in memory.

    manifest.json   manifest.sha256   graphs/<stage>.onnx (+ .data)   tensors/<name>.npy   notes

A bundle is a directory or one STORED zip of it. `Bundle.open` reads every byte once, compares it
with the manifest and keeps it, so that nothing that happens to the files afterwards reaches a
running receiver. Large weight files of a directory it does not keep: they are held to their hash
again when an engine has loaded them (`jscc.runtime.external`). ``manifest.sha256`` covers the
manifest as the manifest covers the rest; in the form that ``sha256sum --check`` reads.
"""

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from jscc.runtime.archive import open_bundle_archive
from jscc.runtime.coherence import check_coherence
from jscc.runtime.declared import shown
from jscc.runtime.errors import BundleError
from jscc.runtime.external import LARGE, External, LargeFile
from jscc.runtime.folder import open_bundle_folder
from jscc.runtime.graphs import GraphSummary, check_policy, summarise
from jscc.runtime.manifest import (
    MANIFEST,
    MANIFEST_LIMIT,
    SEAL,
    TENSOR_DTYPES,
    Manifest,
    StageEntry,
    TensorEntry,
    parse_manifest,
    serialise_manifest,
)
from jscc.runtime.npy import read_npy
from jscc.runtime.ports import Port, describe
from jscc.runtime.trust import BUNDLE, Bytes, check_name, hash_error, reading
from jscc.runtime.write import write_atomically
from jscc.runtime.writers import Writer

WEIGHTS = ".data"  # how the names of weight files end


class Container(Protocol):
    """Where a bundle's files lie: a folder or an archive."""

    def names(self) -> list[str]:
        """Everything that is there."""

    def head(self, name: str, limit: int) -> bytes:
        """A small file that no manifest lists."""

    def read(self, name: str, *, size: int, sha256: str) -> Bytes:
        """A file that the manifest lists, verified."""

    def verify(self, name: str, *, size: int, sha256: str) -> Bytes | LargeFile:
        """The same of a large file, which may stay where it is."""


@dataclass(frozen=True)
class Bundle:
    """A system as the runtime sees it; made by `Bundle.open` only.

    Attributes:
        path: Where it was read from.
        manifest: What it says of itself.
        sha256: Hash of the manifest's bytes: the identity of the bundle.
        summaries: What each stage's graph holds.
    """

    path: Path
    manifest: Manifest
    sha256: str
    summaries: Mapping[str, GraphSummary] = field(repr=False)
    _files: Mapping[str, Bytes | LargeFile] = field(repr=False)
    _tensors: Mapping[str, npt.NDArray[Any]] = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> "Bundle":
        """Read and verify the bundle at `path`, a directory or a STORED zip.

        Raises:
            BundleError: Anything in it is not as its manifest says.
            StorageError: ``E_IO``, reading failed.
            UnavailableError: ``E_MEMORY``, it does not fit.
        """
        path = Path(path)
        with _open_container(path) as container:
            data = container.head(MANIFEST, MANIFEST_LIMIT)
            digest = _check_seal(data, container.head(SEAL, 200))
            manifest = parse_manifest(data)
            check_coherence(manifest)
            _check_presence(manifest, container.names())
            read: dict[str, Bytes] = {}
            verified: dict[str, Bytes | LargeFile] = {}
            weights = {name: e.size for name, e in manifest.files.items() if name.endswith(WEIGHTS)}
            apart = weights if sum(weights.values()) >= LARGE else {}
            for name, entry in manifest.files.items():
                if name in apart:
                    found = container.verify(name, size=entry.size, sha256=entry.sha256)
                    verified[name] = found
                else:
                    read[name] = container.read(name, size=entry.size, sha256=entry.sha256)
        summaries = _check_graphs(manifest, read)
        tensors = {
            name: _check_tensor(name, entry, read[entry.file])
            for name, entry in manifest.tensors.items()
        }
        return cls(path, manifest, digest, summaries, {**read, **verified}, tensors)

    def graph(self, stage: str) -> bytes:
        """The ONNX file of `stage`, as an engine takes it."""
        return self.file(self._stage(stage).graph)

    def external(self, stage: str) -> External:
        """The files that the graph of `stage` refers to, by their location in the graph."""
        self._stage(stage)
        locations = sorted({tensor.location for tensor in self.summaries[stage].external})
        files = {location: self._files[f"graphs/{location}"] for location in locations}
        return External(
            {name: file.data for name, file in files.items() if not isinstance(file, LargeFile)},
            {name: file for name, file in files.items() if isinstance(file, LargeFile)},
        )

    def file(self, name: str) -> bytes:
        """The bytes of one of the files that the manifest lists, as they were verified.

        Raises:
            LookupError: It lists no such file.
            BundleError: ``E_HASH``, ``E_BUNDLE_TRUNCATED``: a large one changed since.
        """
        if name not in self._files:
            raise LookupError(f"no file {name!r}; there are {sorted(self._files)}")
        file = self._files[name]
        return (file.read() if isinstance(file, LargeFile) else file).tobytes()

    def tensor(self, name: str) -> npt.NDArray[Any]:
        """The constant `name`, read-only."""
        if name not in self._tensors:
            raise LookupError(f"no tensor {name!r}; there are {sorted(self._tensors)}")
        return self._tensors[name]

    def _stage(self, stage: str) -> StageEntry:
        if stage not in self.manifest.stages:
            raise LookupError(f"no stage {stage!r}; there are {sorted(self.manifest.stages)}")
        return self.manifest.stages[stage]


def write_bundle(
    destination: Path,
    manifest: Manifest,
    files: Mapping[str, bytes | Path],
    *,
    single_file: bool = False,
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle so that `destination` is either complete and verified, or untouched.

    Args:
        destination: Folder (or, with `single_file`, file) to make.
        manifest: Its `files` are filled in here.
        files: Contents by name in the bundle. A large file given as a path is hard-linked where
            the file system allows; nobody may write to it any more.
        single_file: Write one STORED zip.
        overwrite: Replace a bundle that is there; it stays if anything fails.

    Returns:
        The bundle, opened again from what was written.

    Raises:
        BundleError: The parts do not fit together.
        OutputError: ``E_EXISTS``, ``E_OUTPUT``: the destination cannot be made.
        StorageError: ``E_DISK_FULL``, ``E_IO``.
        BusyError: ``E_BUSY``, somebody else is writing there.
    """
    for name in files:
        check_name(name)
    destination = Path(destination)

    def fill(writer: Writer) -> None:
        entries = {name: writer.add(name, files[name]) for name in sorted(files)}
        complete = replace(manifest, files=entries)
        check_coherence(complete)
        writer.seal(serialise_manifest(complete))

    bundle = write_atomically(
        destination,
        fill,
        Bundle.open,
        needed=sum(map(_size, files.values())),
        single_file=single_file,
        overwrite=overwrite,
    )
    return replace(bundle, path=destination)


def _size(content: bytes | Path) -> int:
    if isinstance(content, bytes):
        return len(content)
    return content.stat().st_size if content.is_file() else 0


@contextmanager
def _open_container(path: Path) -> Iterator[Container]:
    with reading(str(path), BUNDLE, "a bundle"):
        mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        with open_bundle_folder(path) as folder:
            yield folder
    else:
        with open_bundle_archive(path) as archive:
            yield archive


def _check_seal(data: bytes, seal: bytes) -> str:
    """Hold the manifest's bytes to ``manifest.sha256`` and return their hash."""
    digest = hashlib.sha256(data).hexdigest()
    if seal != f"{digest}  {MANIFEST}\n".encode():
        listed = seal[:64].decode("ascii", "backslashreplace")
        raise hash_error(MANIFEST, f"sha256 {digest}", shown(listed))
    return digest


def _check_presence(manifest: Manifest, names: list[str]) -> None:
    listed = {*manifest.files, MANIFEST, SEAL}
    missing = sorted(listed - set(names))
    if missing:
        raise BUNDLE.refuse("MISSING", "bundle", f"no {shown(missing)}", "every listed file")
    extra = sorted(set(names) - listed)
    if extra:
        raise BUNDLE.refuse("UNLISTED", "bundle", f"also {shown(extra)}", "listed files only")


def _check_graphs(manifest: Manifest, files: Mapping[str, Bytes]) -> dict[str, GraphSummary]:
    summaries = {}
    used: set[str] = set()
    for name, stage in manifest.stages.items():
        summary = summarise(files[stage.graph].data, stage.graph)
        check_policy(
            summary, stage.graph, {key: entry.size for key, entry in manifest.files.items()}
        )
        _check_stage(name, stage, summary)
        used |= {f"graphs/{tensor.location}" for tensor in summary.external}
        summaries[name] = summary
    idle = sorted(key for key in manifest.files if key.endswith(".data") and key not in used)
    if idle:
        raise _inconsistent("bundle", f"{shown(idle)}", "data that a graph refers to")
    return summaries


def _check_stage(name: str, stage: StageEntry, summary: GraphSummary) -> None:
    """Hold a graph's ports and opset to what the manifest declares."""
    where = f"stage {name!r}"
    if summary.opsets.get("") != stage.opset:
        raise _inconsistent(where, f"opset {summary.opsets.get('')}", f"{stage.opset}")
    sides = (("input", stage.inputs, summary.inputs), ("output", stage.outputs, summary.outputs))
    for side, declared, found in sides:
        ports = {port.name: port for port in found}
        names = sorted(port.name for port in declared)
        if sorted(ports) != names:
            raise _inconsistent(where, f"{side}s {shown(sorted(ports))}", f"{names}")
        for port in declared:
            if not _like(ports[port.name], port):
                got = f"{ports[port.name]}"
                raise _inconsistent(f"{where}, port {port.name!r}", got, f"{port}")


def _like(found: Port, declared: Port) -> bool:
    """Whether a graph's port is the declared one; symbols may be spelt otherwise."""
    if found.dtype != declared.dtype or len(found.shape) != len(declared.shape):
        return False
    return all(
        isinstance(left, str) if isinstance(right, str) else left == right
        for left, right in zip(found.shape, declared.shape, strict=True)
    )


def _check_tensor(name: str, entry: TensorEntry, data: Bytes) -> npt.NDArray[Any]:
    array = read_npy(data, entry.file, dtypes=TENSOR_DTYPES)
    if array.shape != entry.shape or str(array.dtype) != entry.dtype:
        expected = str(Port(name, entry.dtype, entry.shape))
        raise _inconsistent(entry.file, describe(array), expected)
    return array


def _inconsistent(where: str, got: str, expected: str) -> BundleError:
    return BundleError(
        "E_BUNDLE_INCONSISTENT",
        f"{where}: got {got}, expected {expected}. Export the bundle again.",
    )
