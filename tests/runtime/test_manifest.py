"""The manifest is read as it was written, or refused with the place that is wrong."""

import copy
import dataclasses
import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jscc.runtime.declared import added, needed_format, read, write
from jscc.runtime.errors import BundleError
from jscc.runtime.manifest import FORMAT, parse_manifest, serialise_manifest

REMOVED = object()


@pytest.fixture(scope="module")
def trees(shared_bundles):
    return {
        name: json.loads((bundle.path / "manifest.json").read_bytes())
        for name, bundle in shared_bundles.items()
    }


def changed(tree, pointer, value):
    """A copy of `tree` with `value` at the JSON pointer `pointer`."""
    tree = copy.deepcopy(tree)
    *path, last = (part.replace("~1", "/") for part in pointer.split("/")[1:])
    place = tree
    for key in path:
        place = place[int(key)] if isinstance(place, list) else place[key]
    key = int(last) if isinstance(place, list) else last
    if value is REMOVED:
        del place[key]
    else:
        place[key] = value
    return json.dumps(tree).encode()


@pytest.mark.parametrize("name", ["codec", "diffusion"])
def test_what_was_written_is_what_is_read(shared_bundles, name):
    manifest = shared_bundles[name].manifest
    data = serialise_manifest(manifest)
    assert parse_manifest(data) == manifest
    assert serialise_manifest(parse_manifest(data)) == data
    assert data.endswith(b"}\n")


def test_free_records_come_back(shared_bundles):
    card = {"psnr_db": [30.5, None, {"ok": True}], "n": 24}
    manifest = replace(shared_bundles["codec"].manifest, quality=card, calibration={})
    assert parse_manifest(serialise_manifest(manifest)).quality == card


def test_whole_numbers_are_read_where_numbers_stand(trees):
    manifest = parse_manifest(changed(trees["codec"], "/signal/snr_db_default", 7))
    assert isinstance(manifest.signal.snr_db_default, float)


@pytest.mark.parametrize(
    ("pointer", "value", "said"),
    [
        ("/signal/planes", True, "at /signal/planes: got true, expected a whole number"),
        ("/signal/planes", 4.0, "at /signal/planes: got 4.0, expected a whole number"),
        ("/signal/planes", 3, "at /signal/planes: got 3, expected an even number"),
        ("/signal/planes", 0, "got 0, expected 2 to 4096"),
        ("/signal/packing", "pairs", "got \"pairs\", expected one of 'halves'"),
        ("/signal/snr_db_range", [14.0, 0.0], r"got \[14.0, 0.0\], expected \[low, high\]"),
        ("/signal/snr_db_range", [1.0], "got 1 items, expected 2"),
        ("/signal/power_range", [0.0, 1.0], "expected powers above 0"),
        ("/signal/csi_inputs", ["phase"], "at /signal/csi_inputs/0: got \"phase\""),
        ("/signal/colour", "red", r"at /signal: got unknown keys \[\"colour\"\]"),
        ("/signal", [], r"at /signal: got \[\], expected an object"),
        ("/variant", REMOVED, "at /variant: got nothing, expected a text"),
        ("/system", 5, "at /system: got 5, expected a text"),
        ("/system", "a\x1b[31mb", "at /system: got .*printable"),
        ("/system", "\u202eabc", "at /system: got .*printable"),
        ("/system", "x" * 501, "at most 500"),
        ("/source/sha256", "A" * 64, "64 lower-case hex digits"),
        ("/source/sha256", "a" * 64 + "\n", "64 lower-case hex digits"),
        ("/stages/decode/tiled", 0, "at /stages/decode/tiled: got 0, expected true or false"),
        ("/stages/decode/inputs", [], "one port or more"),
        ("/stages/decode/inputs/0/name", "Received", "/inputs/0: got .*a lower-case name"),
        ("/stages/decode/inputs/0/dtype", "float64", "/inputs/0: got .*a dtype of float32"),
        ("/stages/decode/inputs/0/shape", [0], "/inputs/0: got .*0 to 8 dimensions"),
        ("/stages/decode/inputs/0/shape", ["a/0"], "/inputs/0: got"),
        ("/stages/decode/inputs/0/shape", [True], "/shape/0: got true, expected a whole number or"),
        ("/stages/decode/inputs/1/name", "received", "/inputs: got .*each name once"),
        ("/stages/decode/opset", -1, "got -1, expected 1 to 64"),
        ("/tensors/selftest_image/dtype", "object", "got \"object\", expected one of"),
        ("/tensors/selftest_image/shape", [0], "got 0, expected 1 to"),
        ("/tensors/selftest_image/shape", [1] * 9, "at most 8 dimensions"),
        ("/program", [], r"at /program: got \[\], expected one step or more"),
        ("/program", [7], "at /program/0: got 7, expected a text or an object"),
        ("/program", [{"loop": "a", "x": 1}], r"at /program/0: got unknown keys \[\"x\"\]"),
        ("/selftest/csi/gain", [1.0], "at /selftest/csi/gain: got 1 items"),
        ("/selftest", 1, "at /selftest: got 1, expected an object or null"),
        ("/quality", [], r"at /quality: got \[\], expected an object or null"),
        ("/files/SOURCE.md/size", -1, "at /files/SOURCE.md/size: got -1"),
        ("/files/SOURCE.md/size", 1 << 40, "at /files/SOURCE.md/size: got 1099511627776"),
        ("/files/graphs~1decode.onnx/size", "1", "at /files/graphs~1decode.onnx/size: got \"1\""),
        ("/format", True, "at /format: got true, expected a whole number from 1 up"),
        ("/format", 0, "at /format: got 0"),
        ("/format", REMOVED, "at /format: got null"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_with_its_pointer(trees, pointer, value, said):
    with pytest.raises(BundleError, match=said) as caught:
        parse_manifest(changed(trees["codec"], pointer, value))
    assert caught.value.code == "E_MANIFEST"


@pytest.mark.parametrize(
    ("pointer", "value", "said"),
    [
        ("/loops/denoise/sampler/start_level", 0.0, "got 0.0, expected 0 < level <= 1"),
        ("/loops/denoise/sampler/start", "image", "expected one of 'noise', 'received'"),
        ("/loops/denoise/sampler/guidance", -1, "got -1, expected 0.0 to"),
        ("/loops/denoise/schedule/kind", "a b", "at /loops/denoise/schedule/kind"),
        ("/loops/denoise/guide", 3, "at /loops/denoise/guide: got 3, expected a text or null"),
    ],
)
def test_a_wrong_loop_is_refused_with_its_pointer(trees, pointer, value, said):
    with pytest.raises(BundleError, match=said):
        parse_manifest(changed(trees["diffusion"], pointer, value))


def test_a_missing_start_level_follows_the_snr(trees):
    data = changed(trees["diffusion"], "/loops/denoise/sampler/start_level", None)
    assert parse_manifest(data).loops["denoise"].sampler.start_level is None


def test_nothing_unreadable_is_written(shared_bundles):
    manifest = shared_bundles["codec"].manifest
    wrong = replace(manifest, signal=replace(manifest.signal, snr_db_default=math.nan))
    with pytest.raises(BundleError, match="at /signal/snr_db_default: got NaN"):
        serialise_manifest(wrong)


def test_a_newer_format_is_refused_before_its_contents(trees):
    with pytest.raises(BundleError, match="bundle is format 5, this runtime reads ≤ 3: update"):
        parse_manifest(json.dumps({"format": FORMAT + 2, "new": []}).encode())


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_as_a_bundle_error(data):
    with pytest.raises(BundleError):
        parse_manifest(data)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


def _pointers(tree, pointer=""):
    yield pointer
    pairs = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, item in pairs:
        yield from _pointers(item, f"{pointer}/{str(key).replace('/', '~1')}")


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_json_in_any_place_is_read_or_refused(trees, data):
    tree = trees[data.draw(st.sampled_from(sorted(trees)))]
    pointer = data.draw(st.sampled_from([item for item in _pointers(tree) if item]))
    raw = changed(tree, pointer, data.draw(_JSON))
    said = ""
    try:
        manifest = parse_manifest(raw)
    except BundleError as error:
        said = str(error)
    if said:
        assert "manifest.json at /" in said or "update jscc-edge" in said
    else:
        assert parse_manifest(serialise_manifest(manifest)) == manifest


@dataclasses.dataclass(frozen=True)
class _Grown:
    """A record whose second field came with format 2."""

    old: int
    new: tuple[int, ...] = added(2, ())


def test_a_later_field_may_be_absent_and_is_not_written_at_its_default():
    assert read(_Grown, {"old": 1}) == _Grown(1)
    assert write(_Grown(1)) == {"old": 1}
    assert needed_format(_Grown(1)) == 1


def test_a_later_field_that_says_something_needs_its_format():
    grown = read(_Grown, {"old": 1, "new": [3]})
    assert write({"part": (grown,)}) == {"part": [{"old": 1, "new": [3]}]}
    assert needed_format({"part": (grown,)}) == 2
