"""Rows 31, 32, 34, 35, 36, 49 and 55 of the fault table, where files and commands meet them."""

import hashlib
import json
import os
import struct
import tarfile
import zlib

import numpy as np
import pytest

from effort import little_effort
from jscc.__main__ import main
from jscc.runtime.errors import ImageError, JsccError, SymbolsError, UsageError
from jscc.runtime.frame import Frame
from jscc.runtime.image_files import decode_image
from jscc.runtime.output_files import write_file
from jscc.runtime.symbol_files import read_symbols, write_symbols

GRID = (2, 4, 4)  # of 12x16 pixels, padded to 16x16


def make_symbols(shape=GRID):
    rng = np.random.default_rng(0)
    parts = rng.standard_normal((2, *shape)) / 2**0.5
    return (parts[0] + 1j * parts[1]).astype(np.complex64)


@pytest.fixture
def recording(tmp_path):
    """A valid recording of one frame."""
    path = tmp_path / "radio" / "a.sigmf-meta"
    path.parent.mkdir()
    write_symbols(path, [Frame(make_symbols(), 0, (12, 16), snr_db=7.0)], force=False)
    return path


def edit(path, where=("global",), **fields):
    """Set fields of a part of the metadata; None removes one."""
    tree = json.loads(path.read_text())
    node = tree
    for key in where:
        node = node[key]
    for name, value in fields.items():
        key = name.replace("__", ":")
        node.pop(key, None)
        if value is not None:
            node[key] = value
    path.write_text(json.dumps(tree))


def refused(path, code):
    """The message of the `SymbolsError` that reading `path` ends with, soon."""
    with little_effort(), pytest.raises(SymbolsError) as caught:
        read_symbols(path)
    assert caught.value.code == code
    assert caught.value.exit_status == 65
    return caught.value.message


def rewrite(path, data):
    """Replace the samples and their hash."""
    path.with_suffix(".sigmf-data").write_bytes(data)
    edit(path, core__sha512=hashlib.sha512(data).hexdigest())


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (
            lambda data: data[:-8],
            "E_SYM_COUNT",
            "got 31 samples in the file, expected samples 0 to 32",
        ),
        (lambda data: data[:-3], "E_SYM_COUNT", "got 253 bytes, expected a multiple of 8"),
        (lambda data: data + b"\0", "E_SYM_COUNT", "got 257 bytes, expected a multiple of 8"),
        (lambda data: b"", "E_SIGMF_EMPTY", "got no samples, expected at least one frame"),
    ],
)
def test_row_31_wrong_count(recording, change, code, words):
    data = recording.with_suffix(".sigmf-data").read_bytes()
    rewrite(recording, change(data))
    assert words in refused(recording, code)


def test_row_31_counts_that_contradict_the_grid(recording):
    edit(recording, ("annotations", 0), core__sample_count=31)
    assert 'got "31 samples"' in refused(recording, "E_SYM_COUNT")


def test_row_31_more_than_two_to_the_31(recording):
    with open(recording.with_suffix(".sigmf-data"), "r+b") as file:
        file.truncate(2**31 + 8)
    assert f"got {2**31 + 8} bytes, expected at most {2**28}" in refused(recording, "E_SYM_SIZE")


def test_row_31_receiving_never_pads(recording, shared_bundles, capsys):
    """A recording that is whole, but of another image size than is claimed."""
    for size in ("24x16", "8x16", "24x32"):
        output = recording.parent / "x.png"
        arguments = [str(shared_bundles["codec"].path), str(recording), "-o", str(output)]
        assert main(["receive", *arguments, "--size", size]) == 65
        assert "[E_SYM_COUNT]" in capsys.readouterr().err
        assert not output.exists()


@pytest.mark.parametrize(
    "datatype",
    ["rf32_le", "ri16_le", "cf32", "cu8", "ci8", "cu16_le", "ci32_le", "cf16_le", "CF32_LE", ""],
)
def test_row_32_types_that_are_not_declared(recording, datatype):
    edit(recording, core__datatype=datatype)
    assert f'got "{datatype}", expected one of cf32_le' in refused(recording, "E_SYM_DTYPE")


@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<i8", "|u1", "|b1"])
def test_row_32_npy_of_real_numbers(tmp_path, dtype):
    np.save(tmp_path / "a.npy", np.ones(GRID, dtype))
    assert "expected complex64 or complex128" in refused(tmp_path / "a.npy", "E_SYM_DTYPE")


@pytest.mark.parametrize("dtype", [">c8", ">c16", "<U4", "<M8[s]", [("re", "<f4"), ("im", "<f4")]])
def test_row_32_npy_of_other_layouts(tmp_path, dtype):
    np.save(tmp_path / "a.npy", np.zeros(GRID, dtype))
    assert "got " in refused(tmp_path / "a.npy", "E_NPY")


def test_row_32_npy_of_objects_is_never_unpickled(tmp_path):
    marker = tmp_path / "marker"

    class Payload:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    np.save(tmp_path / "a.npy", np.array([Payload()], object), allow_pickle=True)
    refused(tmp_path / "a.npy", "E_NPY")
    assert not marker.exists()


def test_row_32_swapped_bytes_are_caught_by_their_power(recording, shared_bundles, capsys):
    """Little-endian samples that are declared big-endian: finite or not, never an image."""
    edit(recording, core__datatype="cf32_be")
    output = recording.parent / "x.png"
    arguments = [str(shared_bundles["codec"].path), str(recording), "-o", str(output)]
    assert main(["receive", *arguments]) == 65
    assert "[E_SYM_" in capsys.readouterr().err
    assert not output.exists()


def png_claiming(height, width):
    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(("height", "width"), [(10**5, 10**5), (1, 2**31 - 1), (2**31 - 1, 1)])
def test_row_34_an_image_to_send_that_claims_to_be_huge(height, width):
    with little_effort():
        with pytest.raises(ImageError, match="expected at most 16777216 pixels") as caught:
            decode_image("x", png_claiming(height, width))
        assert caught.value.code == "E_IMG_SIZE"


@pytest.mark.parametrize(
    ("height", "width"), [(10**5, 10**5), (10**9, 1), (0, 16), (-12, 16), (2**63, 2**63)]
)
def test_row_34_a_recording_that_claims_a_huge_image(
    recording, shared_bundles, capsys, height, width
):
    edit(recording, ("annotations", 0), jscc__height=height, jscc__width=width)
    output = recording.parent / "x.png"
    arguments = [str(shared_bundles["codec"].path), str(recording), "-o", str(output)]
    assert main(["receive", *arguments]) == 65
    error = capsys.readouterr().err
    assert "[E_IMG_SIZE]" in error or "[E_SIGMF_META]" in error
    assert not output.exists()


OUTSIDE = [
    "../secret.sigmf-data",
    "..",
    ".",
    "",
    "/etc/passwd",
    "sub/x.sigmf-data",
    "a\\..\\x",
    "C:x",
    "x\0y",
    ".hidden",
    "x.sigmf-data ",
    "x.",
    "‥/x",
    "x" * 300,
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_row_35_a_dataset_outside_the_folder(recording, name, monkeypatch):
    (recording.parent.parent / "secret.sigmf-data").write_bytes(make_symbols().tobytes())
    edit(recording, core__dataset=name)
    opened = []
    real_open = os.open
    monkeypatch.setattr(
        os,
        "open",
        lambda path, *rest, **more: opened.append(path) or real_open(path, *rest, **more),
    )
    assert "expected the bare name of a file in the same folder" in refused(
        recording, "E_SIGMF_PATH"
    )
    assert set(map(str, opened)) <= {str(recording.parent), recording.name}


def test_row_35_a_dataset_of_another_name_in_the_folder_is_read(recording):
    data = recording.with_suffix(".sigmf-data")
    data.rename(recording.parent / "other.bin")
    edit(recording, core__dataset="other.bin")
    assert read_symbols(recording).frames[0].symbols.shape == GRID


def test_row_35_links_are_not_followed(recording, tmp_path):
    data = recording.with_suffix(".sigmf-data")
    data.rename(tmp_path / "secret")
    data.symlink_to(tmp_path / "secret")
    assert "got a link" in refused(recording, "E_SYM_FILETYPE")


@pytest.mark.parametrize("count", [0, 2, 10**12, -1, True, "1", 1.0])
def test_row_35_channels(recording, count):
    edit(recording, core__num_channels=count)
    code = "E_SIGMF_CHANNELS" if count in (0, 2, 10**12) and count is not True else "E_SIGMF_META"
    assert "core:num_channels: got " in refused(recording, code)


@pytest.mark.parametrize("count", [1, 4, 10**15])
def test_row_35_header_bytes(recording, count):
    edit(recording, ("captures", 0), core__header_bytes=count)
    assert f"core:header_bytes: got {count}, expected 0" in refused(recording, "E_SIGMF_LAYOUT")


def test_row_35_wrong_hash(recording):
    data = bytearray(recording.with_suffix(".sigmf-data").read_bytes())
    data[7] ^= 1
    recording.with_suffix(".sigmf-data").write_bytes(data)
    assert "got sha512 " in refused(recording, "E_SIGMF_HASH")


def test_row_35_absent_hash_is_said_and_refused_when_strict(recording, shared_bundles, capsys):
    edit(recording, core__sha512=None)
    assert not read_symbols(recording).hashed
    output = recording.parent / "x.png"
    arguments = [str(shared_bundles["codec"].path), str(recording), "-o", str(output), "--json"]
    assert main(["receive", *arguments, "--strict"]) == 65
    assert "[E_SIGMF_HASH]" in capsys.readouterr().err
    assert main(["receive", *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["hashed"] is False


def test_row_35_archives(tmp_path):
    path = tmp_path / "a.sigmf"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("a.sigmf-data")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(UsageError, match="Unpack the archive first"):
        read_symbols(path)
    path.rename(tmp_path / "a.sigmf-meta")
    assert "expected JSON" in refused(tmp_path / "a.sigmf-meta", "E_SIGMF_META")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"global": NaN}',
        '{"global": 1e999}',
        '{"global": {}, "global": {}}',
        "[" * 10**5 + "]" * 10**5,
        '{"global": ' + "9" * 5000 + "}",
        "\ufeff{}",
        '{"global": "\\ud800"}',
    ],
)
def test_row_35_metadata_that_are_no_strict_json(tmp_path, text):
    path = tmp_path / "a.sigmf-meta"
    path.write_text(text, encoding="utf-8")
    assert "got " in refused(path, "E_SIGMF_META")


def test_row_35_huge_metadata(recording):
    with open(recording, "r+b") as file:
        file.truncate(10**9)
    assert "got 1000000000 bytes, expected at most 4194304" in refused(recording, "E_SYM_SIZE")


def npy(shape, data=b"", *, descr="<c8", version=1, padding=0):
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    header = text.encode() + b" " * padding + b"\n"
    size = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + size + header + data


@pytest.mark.parametrize(
    "content",
    [
        npy("(1000000000000,)"),
        npy("(1000000, 1000000, 1000000)"),
        npy("(4294967296, 4294967296)"),  # the product is 0 in 64 bits
        npy("(-1,)"),
        npy("(2,)", b"\0" * 15),
        npy("(2,)", b"\0" * 16 + b"trailing"),
        npy("(2,)", b"\0" * 16, version=2),
        npy("(2,)", b"\0" * 16, padding=60000),
        npy("(2,)", b"\0" * 16, descr="|O"),
        npy("(2,)", b"\0" * 16, descr="', 'x': __import__('os'), 'y': '"),
        npy("(True,)", b"\0" * 8),
        npy("(0,)"),
        npy("()", b"\0" * 8),
        b"",
        b"\x93NUMPY",
        b"PK\x03\x04",
    ],
)
def test_row_36_npy_headers_that_lie(tmp_path, content):
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    with little_effort():
        with pytest.raises(SymbolsError, match="got ") as caught:
            read_symbols(path)
        assert caught.value.code in ("E_NPY", "E_SYM_COUNT")


def test_row_36_npy_of_a_side_input(tmp_path, shared_bundles, recording, capsys):
    """The other ``.npy`` that a command reads goes through the same reader."""
    (tmp_path / "c.npy").write_bytes(npy("(1000000000000,)", descr="<f4"))
    bundle = str(shared_bundles["diffusion"].path)
    arguments = [bundle, str(recording), "-o", str(tmp_path / "x.png")]
    assert main(["receive", *arguments, "--context", str(tmp_path / "c.npy")]) == 65
    assert "[E_NPY]" in capsys.readouterr().err


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_row_49_a_provider_that_is_missing(recording, shared_bundles, capsys, provider):
    """Alone it is refused; with cpu behind it the fallback is said in the record and on stderr."""
    ort = pytest.importorskip("onnxruntime")
    if any(name.lower().startswith(provider) for name in ort.get_available_providers()):
        pytest.skip(f"this engine has {provider}")
    output = recording.parent / "x.png"
    arguments = [str(shared_bundles["codec"].path), str(recording), "-o", str(output), "--json"]
    assert main(["receive", *arguments, "--provider", provider]) == 69
    captured = capsys.readouterr()
    assert "[E_EP_MISSING]" in captured.err
    assert captured.out == ""
    assert not output.exists()
    assert main(["receive", *arguments, "--provider", provider, "--provider", "cpu"]) == 0
    captured = capsys.readouterr()
    record = json.loads(captured.out)["images"][0]["record"]
    assert record["providers"] == {"decode": "cpu"}
    assert provider in record["fallbacks"][0]
    assert f"fell back: stage 'decode': {provider}" in captured.err


def test_row_49_an_unknown_provider(recording, shared_bundles, capsys):
    output = recording.parent / "x.png"
    arguments = [str(shared_bundles["codec"].path), str(recording), "-o", str(output)]
    assert main(["receive", *arguments, "--provider", "NopeEP"]) == 2
    captured = capsys.readouterr()
    assert "got 'NopeEP', expected names of cpu" in captured.err
    assert captured.out == ""


def test_row_55_outputs_are_never_overwritten_unless_asked(recording, shared_bundles, capsys):
    output = recording.parent / "x.png"
    output.write_text("precious")
    arguments = [str(shared_bundles["codec"].path), str(recording), "-o", str(output)]
    assert main(["receive", *arguments]) == 73
    assert "got a file that exists, expected a free name" in capsys.readouterr().err
    assert output.read_text() == "precious"
    assert main(["receive", *arguments, "--force"]) == 0
    assert output.read_bytes().startswith(b"\x89PNG")


def test_row_55_a_link_in_the_output_folder_is_not_followed(recording, shared_bundles, capsys):
    target = recording.parent / "target"
    target.write_text("precious")
    output = recording.parent / "x.png"
    output.symlink_to(target)
    arguments = [str(shared_bundles["codec"].path), str(recording), "-o", str(output)]
    for extra in ([], ["--force"]):
        assert main(["receive", *arguments, *extra]) == 73
        assert "got a link" in capsys.readouterr().err
    assert target.read_text() == "precious"


def test_row_55_a_planted_temporary_name_cannot_redirect(tmp_path, monkeypatch):
    """Even where the random name is guessed, ``O_EXCL | O_NOFOLLOW`` refuses the link."""
    monkeypatch.setattr("secrets.token_hex", lambda count: "guessed")
    (tmp_path / "target").write_text("precious")
    (tmp_path / ".x.png.guessed.tmp").symlink_to("target")
    with pytest.raises(JsccError, match="File exists"):
        write_file(tmp_path / "x.png", b"new", force=True)
    assert (tmp_path / "target").read_text() == "precious"


def test_row_55_names_come_from_our_counter(tmp_path, shared_bundles):
    """No field of a recording reaches a file name."""
    path = tmp_path / "a.sigmf-meta"
    frames = [Frame(make_symbols(), number, (12, 16), snr_db=7.0) for number in (5, 5, 9)]
    write_symbols(path, frames, force=False)
    for index in range(3):
        edit(path, ("annotations", index), core__label="../../evil", jscc__bundle="../x")
    folder = tmp_path / "out"
    folder.mkdir()
    arguments = [str(shared_bundles["codec"].path), str(path), "-o", str(folder / "x.png")]
    assert main(["receive", *arguments]) == 0
    assert sorted(os.listdir(folder)) == ["x-0000.png", "x-0001.png", "x-0002.png"]


def test_results_of_commands_are_images_that_pillow_reads(recording, shared_bundles):
    """The control of this file: the recording that every test above damages is a good one."""
    output = recording.parent / "x.png"
    assert (
        main(["receive", str(shared_bundles["codec"].path), str(recording), "-o", str(output)]) == 0
    )
    assert decode_image("x", output.read_bytes()).pixels.shape == (12, 16, 3)
