"""SigMF: recordings of symbols, ``NAME.sigmf-meta`` (JSON) beside ``NAME.sigmf-data`` (samples).

We write the core namespace of SigMF 1.2.6 (https://sigmf.org) as ``cf32_le``, one capture segment
and one annotation for each image, and our own extension ``jscc`` in the annotations:

    jscc:frame                        number of the image in the transmission
    jscc:height  jscc:width           size of the image that was sent, in pixels
    jscc:planes  jscc:rows  jscc:columns   grid; planes/2 x rows x columns symbols, in this order
    jscc:snr_db  jscc:gain            radio channel: dB, and [real, imaginary]
    jscc:bundle                       sha256 of the bundle
    jscc:side                         what else the receiver is given: name → list of numbers

Other recorders' files are read too: each capture segment is then one image of unknown grid.

NOTE: nothing here opens files. `parse` says which file name holds the samples, `assemble` makes
frames of their bytes; ``symbol_files`` does the reading between the two. The name is checked to
be a bare one because other readers follow ``core:dataset`` out of the folder.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from jscc.runtime.errors import SymbolsError
from jscc.runtime.frame import Frame, Symbols
from jscc.runtime.place import Json, Place
from jscc.runtime.side_fields import side_from_json, side_to_json

META_SUFFIX = ".sigmf-meta"
DATA_SUFFIX = ".sigmf-data"
VERSION = "1.2.6"
EXTENSION = "1.0.0"
MAX_META_BYTES = 2**22  # room for the metadata of `MAX_FRAMES` frames
MAX_FRAMES = 4096

# What is converted, and from what; integers are read as fractions of full scale.
DATATYPES: Mapping[str, tuple[str, float]] = {
    "cf32_le": ("<f4", 1.0),
    "cf32_be": (">f4", 1.0),
    "cf64_le": ("<f8", 1.0),
    "cf64_be": (">f8", 1.0),
    "ci16_le": ("<i2", 2.0**-15),
    "ci16_be": (">i2", 2.0**-15),
}


@dataclass(frozen=True)
class Segment:
    """Where the samples of one image lie and what an annotation says of them.

    Attributes:
        start: First sample.
        count: Samples; None for all that follow.
        grid: planes/2, rows and columns, or None.
        frame: Everything else; its symbols are empty.
    """

    start: int
    count: int | None
    grid: tuple[int, int, int] | None
    frame: Frame


@dataclass(frozen=True)
class Meta:
    """A checked ``.sigmf-meta``.

    Attributes:
        dataset: Bare name of the file that holds the samples, in the same folder; None for the
            name of the metadata file with ``.sigmf-data``.
        datatype: A key of `DATATYPES`.
        sha512: Of the samples, in lower-case hex; None if the file does not say.
        segments: In the order of the samples, not overlapping.
    """

    dataset: str | None
    datatype: str
    sha512: str | None
    segments: tuple[Segment, ...]


def serialise(frames: Sequence[Frame], *, recorder: str) -> tuple[bytes, bytes]:
    """The bytes of ``.sigmf-meta`` and ``.sigmf-data`` for `frames`.

    Args:
        frames: What to write; at least one.
        recorder: The software's name and version, for ``core:recorder``.
    """
    data = b"".join(frame.symbols.astype("<c8").tobytes() for frame in frames)
    counts = [frame.symbols.size for frame in frames]
    starts = [0, *itertools.accumulate(counts)][:-1]
    extension = {"name": "jscc", "version": EXTENSION, "optional": True}
    meta = {
        "global": {
            "core:datatype": "cf32_le",
            "core:version": VERSION,
            "core:num_channels": 1,
            "core:sha512": hashlib.sha512(data).hexdigest(),
            "core:recorder": recorder,
            "core:description": "Symbols of deep joint source-channel coding.",
            "core:extensions": [extension],
        },
        "captures": [{"core:sample_start": start} for start in starts],
        "annotations": [
            _annotation(frame, start) for frame, start in zip(frames, starts, strict=True)
        ],
    }
    return json.dumps(meta, indent=2, sort_keys=True, allow_nan=False).encode() + b"\n", data


def _annotation(frame: Frame, start: int) -> dict[str, Json]:
    fields: dict[str, Json] = {
        "core:sample_start": start,
        "core:sample_count": frame.symbols.size,
        "core:label": f"image {frame.number}",
        "jscc:frame": frame.number,
    }
    if frame.symbols.ndim == 3:
        pairs, rows, columns = frame.symbols.shape
        fields |= {"jscc:planes": 2 * pairs, "jscc:rows": rows, "jscc:columns": columns}
    if frame.size is not None:
        fields |= {"jscc:height": frame.size[0], "jscc:width": frame.size[1]}
    if frame.snr_db is not None:
        fields["jscc:snr_db"] = frame.snr_db
    if frame.gain is not None:
        fields["jscc:gain"] = [frame.gain.real, frame.gain.imag]
    if frame.bundle is not None:
        fields["jscc:bundle"] = frame.bundle
    if frame.side:
        fields["jscc:side"] = side_to_json(frame.side)
    return fields


def parse(name: str, document: Json) -> Meta:
    """Check a ``.sigmf-meta`` document.

    Args:
        name: What to call the file in messages.
        document: Its JSON, already read strictly.

    Raises:
        SymbolsError: ``E_SIGMF_META``, not the shape of SigMF metadata; ``E_SIGMF_VERSION``, not
            SigMF 1.x; ``E_SYM_DTYPE``, samples of a type that is not converted;
            ``E_SIGMF_CHANNELS``, not one channel; ``E_SIGMF_PATH``, samples outside the folder;
            ``E_SIGMF_LAYOUT``, bytes that are no samples, or an offset; ``E_SIGMF_EMPTY``, no
            samples at all; ``E_SIGMF_EXTENSION``, an extension we must know and do not;
            ``E_SIGMF_FRAMES``, frames that overlap or too many; ``E_SIDE_SIZE``, too many side
            values; ``E_SYM_COUNT``, a grid that does not hold the number of samples.
    """
    root = Place(name, document)
    header = root.child("global")
    _check_version(header)
    _check_layout(header)
    captures = root.items("captures")
    for capture in captures:
        if capture.integer("core:header_bytes", default=0) != 0:
            raise _layout(capture, "core:header_bytes")
    annotations = [item for item in root.items("annotations") if _is_ours(item)]
    if annotations:
        segments = tuple(_described(item) for item in annotations)
    else:
        segments = _undescribed(captures)
    _check_order(root, segments)
    return Meta(_dataset(header), _datatype(header), _sha512(header), segments)


def assemble(name: str, meta: Meta, data: npt.NDArray[np.uint8]) -> tuple[Frame, ...]:
    """Make the frames that `meta` describes of the samples' bytes.

    Raises:
        SymbolsError: ``E_SIGMF_HASH``, the bytes are not those that were recorded;
            ``E_SIGMF_EMPTY``, there are none; ``E_SYM_COUNT``, a broken last sample, or fewer
            samples than the frames need.
    """
    if len(data) == 0:
        raise _empty(name)
    actual = hashlib.sha512(data.data).hexdigest()
    if meta.sha512 is not None and actual != meta.sha512:
        raise SymbolsError(
            "E_SIGMF_HASH",
            f"symbols {name!r}: got sha512 {actual[:16]}…, expected {meta.sha512[:16]}…. The "
            "samples were changed or cut short: copy both files again.",
        )
    symbols = _to_complex(name, meta.datatype, data)
    frames = []
    for segment in meta.segments:
        end = symbols.size if segment.count is None else segment.start + segment.count
        if end > symbols.size or segment.start >= end:
            raise SymbolsError(
                "E_SYM_COUNT",
                f"symbols {name!r}, frame {segment.frame.number}: got {symbols.size} samples in "
                f"the file, expected samples {segment.start} to {end}. Record it again.",
            )
        part = symbols[segment.start : end]
        if segment.grid is not None:
            part = part.reshape(segment.grid)
        frames.append(replace(segment.frame, symbols=part))
    return tuple(frames)


def _to_complex(name: str, datatype: str, data: npt.NDArray[np.uint8]) -> Symbols:
    """Interleaved real and imaginary parts as complex64."""
    dtype, scale = DATATYPES[datatype]
    size = 2 * np.dtype(dtype).itemsize
    if len(data) % size:
        raise SymbolsError(
            "E_SYM_COUNT",
            f"symbols {name!r}: got {len(data)} bytes, expected a multiple of {size} for "
            f"{datatype}. The last sample is broken: record it again.",
        )
    parts = data.view(dtype)
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite, refused later
        floats = parts.astype(np.float32)
    if scale != 1.0:
        floats *= np.float32(scale)
    return floats.view(np.complex64)


def _check_version(header: Place) -> None:
    version = header.text("core:version")
    if version is None or not re.fullmatch(r"v?1\.[0-9]{1,6}\.[0-9]{1,6}", version):
        raise header.at("core:version", version).fail("E_SIGMF_VERSION", version, "1.x.y")
    extensions = header.get("core:extensions")
    for item in header.items("core:extensions") if extensions is not None else []:
        known = item.get("name") == "jscc"
        if known and not re.fullmatch(r"v?1\..*", item.text("version") or ""):
            raise item.fail("E_SIGMF_EXTENSION", item.get("version"), f"jscc {EXTENSION}")
        if not known and item.get("optional") is False:
            expected = "only extensions that are optional"
            raise item.fail("E_SIGMF_EXTENSION", item.get("name"), expected)


def _check_layout(header: Place) -> None:
    channels = header.integer("core:num_channels", default=1)
    if channels != 1:
        raise header.at("core:num_channels", channels).fail("E_SIGMF_CHANNELS", channels, "1")
    for key in ("core:offset", "core:trailing_bytes"):
        if header.integer(key, default=0) != 0:
            raise _layout(header, key)
    if header.get("core:metadata_only") is True:
        raise _empty(header.name)


def _layout(place: Place, key: str) -> SymbolsError:
    value = place.get(key)
    return place.at(key, value).fail("E_SIGMF_LAYOUT", value, "0, a file of nothing but samples")


def _datatype(header: Place) -> str:
    value = header.text("core:datatype")
    if value is None or value not in DATATYPES:
        raise header.at("core:datatype", value).fail(
            "E_SYM_DTYPE", value, f"one of {', '.join(DATATYPES)}"
        )
    return value


def _dataset(header: Place) -> str | None:
    """The bare file name that holds the samples."""
    name = header.text("core:dataset")
    if name is None:
        return None
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9 _.+-]{0,199}", name) or name.endswith((".", " ")):
        raise header.at("core:dataset", name).fail(
            "E_SIGMF_PATH", name, "the bare name of a file in the same folder"
        )
    return name


def _sha512(header: Place) -> str | None:
    value = header.text("core:sha512")
    if value is None:
        return None
    if not re.fullmatch(r"[0-9a-fA-F]{128}", value):
        raise header.at("core:sha512", value).fail("E_SIGMF_HASH", value, "128 hex digits")
    return value.lower()


def _is_ours(item: Place) -> bool:
    """Whether an annotation describes a frame."""
    return any(key.startswith("jscc:") for key in item.object())


def _described(item: Place) -> Segment:
    """A frame from one of our annotations."""
    start = item.integer("core:sample_start")
    count = item.integer("core:sample_count", least=1)
    frame = Frame(
        symbols=np.zeros(0, np.complex64),
        number=item.integer("jscc:frame", default=0),
        size=_pair(item, "jscc:height", "jscc:width"),
        snr_db=item.number("jscc:snr_db"),
        gain=_gain(item),
        bundle=item.text("jscc:bundle"),
        side=_side(item),
    )
    return Segment(start, count, _grid(item, count), frame)


def _undescribed(captures: Sequence[Place]) -> tuple[Segment, ...]:
    """One frame for each capture segment of somebody else's recording."""
    starts = [capture.integer("core:sample_start") for capture in captures] or [0]
    ends = [*starts[1:], None]
    return tuple(
        Segment(
            start, None if end is None else end - start, None, Frame(np.zeros(0, np.complex64), n)
        )
        for n, (start, end) in enumerate(zip(starts, ends, strict=True))
    )


def _check_order(root: Place, segments: Sequence[Segment]) -> None:
    if len(segments) > MAX_FRAMES:
        raise root.fail("E_SIGMF_FRAMES", len(segments), f"at most {MAX_FRAMES} frames")
    for before, after in itertools.pairwise(segments):
        if before.count is None or before.count < 1 or before.start + before.count > after.start:
            raise root.fail(
                "E_SIGMF_FRAMES",
                f"a frame at sample {after.start} after one at {before.start}",
                "frames in order that do not overlap",
            )


def _grid(item: Place, count: int) -> tuple[int, int, int] | None:
    keys = ("jscc:planes", "jscc:rows", "jscc:columns")
    if all(item.get(key) is None for key in keys):
        return None
    planes, rows, columns = (item.integer(key, least=1) for key in keys)
    if planes % 2 or planes // 2 * rows * columns != count:
        raise item.fail(
            "E_SYM_COUNT",
            f"{count} samples",
            f"planes/2 x rows x columns of {planes}x{rows}x{columns}, planes even",
        )
    return planes // 2, rows, columns


def _pair(item: Place, first: str, second: str) -> tuple[int, int] | None:
    if item.get(first) is None and item.get(second) is None:
        return None
    return item.integer(first, least=1), item.integer(second, least=1)


def _side(item: Place) -> dict[str, npt.NDArray[np.float32]]:
    value = item.get("jscc:side")
    return {} if value is None else side_from_json(item.at("jscc:side", value))


def _gain(item: Place) -> complex | None:
    value = item.get("jscc:gain")
    if value is None:
        return None
    place = item.at("jscc:gain", value)
    if not isinstance(value, list) or len(value) != 2:
        raise place.fail("E_SIGMF_META", value, "[real, imaginary]")
    real, imaginary = (place.at(index, part).as_number() for index, part in enumerate(value))
    return complex(real, imaginary)


def _empty(name: str) -> SymbolsError:
    return SymbolsError(
        "E_SIGMF_EMPTY",
        f"symbols {name!r}: got no samples, expected at least one frame. Copy the "
        f"{DATA_SUFFIX} file too.",
    )
