"""Rows 15 to 23, 26, 27 and 36 of the fault table: what reaches the device as a bundle."""

import hashlib
import io
import json
import os
import shutil
import stat
import struct
import threading
import tracemalloc
import zipfile
import zlib

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import tiny_bundle
from effort import little_effort
from jscc.runtime import archive
from jscc.runtime.archive import Entry, directory, local_header
from jscc.runtime.bundle import Bundle, write_bundle
from jscc.runtime.errors import BundleError
from jscc.runtime.graphs import check_policy, summarise
from jscc.runtime.manifest import parse_manifest
from jscc.runtime.npy import read_npy
from jscc.runtime.trust import check_name, open_regular, read_file, strict_json


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A bundle that a module's tests damage and restore."""
    return tiny_bundle.write_codec(tmp_path_factory.mktemp("rows") / "tiny.jscc").path


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The bytes of a bundle as one file."""
    path = tmp_path_factory.mktemp("rows") / "tiny.jscc"
    tiny_bundle.write_codec(path, single_file=True)
    return path.read_bytes()


@pytest.fixture(scope="module")
def smallest(tmp_path_factory):
    """The least bundle, as a folder and as the bytes of one file."""
    parent = tmp_path_factory.mktemp("smallest")
    write_bundle(parent / "packed.jscc", *tiny_bundle.smallest(), single_file=True)
    folder = write_bundle(parent / "tiny.jscc", *tiny_bundle.smallest()).path
    return folder, (parent / "packed.jscc").read_bytes()


def code_of(path):
    """The code with which the bundle at `path` is refused; empty if it opens."""
    try:
        Bundle.open(path)
    except BundleError as error:
        return error.code
    return ""


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_row_15_a_truncated_bundle_never_opens(smallest, tmp_path):
    folder, packed = smallest
    for path in files_of(folder):
        whole = path.read_bytes()
        size = len(whole)
        for cut in sorted({0, 1, size // 4, size // 2, size - 2, size - 1}):
            path.write_bytes(whole[:cut])
            expected = {"E_HASH"} if path.name.startswith("manifest") else {"E_BUNDLE_TRUNCATED"}
            assert code_of(folder) in expected, (path.name, cut)
        path.write_bytes(whole)
    assert code_of(folder) == ""
    target = tmp_path / "cut.jscc"
    for cut in range(0, len(packed), 11):
        target.write_bytes(packed[:cut])
        assert code_of(target) in ("E_BUNDLE_TRUNCATED", "E_BUNDLE_ZIP"), cut


def test_row_16_every_flipped_bit_is_found_in_a_folder(smallest):
    """One bit of every byte of every file; which one goes round with the place."""
    folder, _ = smallest
    for path in files_of(folder):
        whole = path.read_bytes()
        with path.open("r+b", buffering=0) as file:
            for place, byte in enumerate(whole):
                os.pwrite(file.fileno(), bytes([byte ^ 1 << place % 8]), place)
                assert code_of(folder) == "E_HASH", (path.name, place)
                os.pwrite(file.fileno(), bytes([byte]), place)
    assert code_of(folder) == ""


def test_row_16_a_flipped_bit_names_the_file_and_both_hashes(folder):
    path = folder / "graphs" / "decode.onnx"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    said = r"graphs/decode.onnx: got sha256 [0-9a-f]{64}, expected [0-9a-f]{64}"
    with pytest.raises(BundleError, match=said):
        Bundle.open(folder)
    path.write_bytes(whole)


def test_row_16_every_flipped_bit_is_found_in_an_archive(smallest, tmp_path):
    _, packed = smallest
    target = tmp_path / "flip.jscc"
    target.write_bytes(packed)
    with target.open("r+b", buffering=0) as file:
        for place, byte in enumerate(packed):
            os.pwrite(file.fileno(), bytes([byte ^ 1 << place % 8]), place)
            assert code_of(target).startswith("E_"), place
            os.pwrite(file.fileno(), bytes([byte]), place)
    assert code_of(target) == ""


BAD_NAMES = [
    "../x", "/x", "a/../../x", "a\\..\\x", "a\0b", "CON", "con.md", "NUL.txt", "com1", ".", "..",
    "x" * 300, "SOURCE\u202e.md", "S\u041eURCE.md", "SOURCE.md.", "SOURCE.md ", " SOURCE.md",
    "graphs/../x.onnx", "graphs//x.onnx", "graphs/CON.onnx", "graphs\\x.onnx", "C:x", "~", "-rf",
    "", "\ud800", "graphs/x.onnx\n", "graphs", "manifest.json", "manifest.sha256", "x.so", "x.py",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_row_17_names_that_lead_elsewhere_are_refused_before_any_open(name, folder, monkeypatch):
    with pytest.raises(BundleError, match="expected a plain") as caught:
        check_name(name)
    assert caught.value.code == "E_BUNDLE_PATH"
    tree = json.loads((folder / "manifest.json").read_bytes())
    tree["files"][name] = tree["files"]["SOURCE.md"]
    monkeypatch.setattr(os, "open", None)
    with pytest.raises(BundleError, match=r"manifest.json at /files.*expected") as caught:
        parse_manifest(json.dumps(tree).encode())
    assert caught.value.code == ("E_MANIFEST" if name == "\ud800" else "E_BUNDLE_PATH")


def test_row_17_names_that_differ_by_case_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "a.jscc")
    path = tmp_path / "a.jscc" / "manifest.json"
    tree = json.loads(path.read_bytes())
    tree["files"]["source.md"] = tree["files"]["SOURCE.md"]
    seal(tmp_path / "a.jscc", json.dumps(tree).encode())
    assert code_of(tmp_path / "a.jscc") == "E_BUNDLE_PATH"


def seal(folder, data):
    """Write `data` as the manifest of `folder`, with the right hash."""
    (folder / "manifest.json").write_bytes(data)
    (folder / "manifest.sha256").write_text(f"{hashlib.sha256(data).hexdigest()}  manifest.json\n")


def test_row_18_what_is_no_file_is_refused_at_once(folder, tmp_path):
    bundle = tmp_path / "a.jscc"
    elsewhere = tmp_path / "decode.onnx"
    shutil.copy(folder / "graphs" / "decode.onnx", elsewhere)

    def as_symlink(path):
        path.symlink_to(elsewhere)

    def as_device(path):
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))

    makers = [as_symlink, os.mkfifo, os.mkdir] + ([as_device] if os.geteuid() == 0 else [])
    for make in makers:
        shutil.copytree(folder, bundle)
        (bundle / "graphs" / "decode.onnx").unlink()
        make(bundle / "graphs" / "decode.onnx")
        with little_effort():
            assert code_of(bundle) == "E_BUNDLE_FILETYPE", make
        shutil.rmtree(bundle)


def test_row_18_a_symlinked_parent_is_refused(folder, tmp_path):
    bundle = tmp_path / "a.jscc"
    shutil.copytree(folder, bundle)
    (bundle / "graphs").rename(tmp_path / "graphs")
    (bundle / "graphs").symlink_to(tmp_path / "graphs")
    assert code_of(bundle) == "E_BUNDLE_FILETYPE"


def test_row_18_a_fifo_or_device_instead_of_a_bundle_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", "/dev/zero"):
        assert code_of(path) == "E_BUNDLE_FILETYPE"


def test_row_18_a_hard_link_is_read_and_hashed(folder, tmp_path):
    bundle = tmp_path / "a.jscc"
    shutil.copytree(folder, bundle)
    (bundle / "SOURCE.md").unlink()
    (bundle / "SOURCE.md").hardlink_to(folder / "SOURCE.md")
    assert code_of(bundle) == ""


def outside(*pairs, **fields):
    """An external tensor of 64 bytes whose reference says `pairs`."""
    tensor = TensorProto(name="w", dims=[4, 4], data_type=TensorProto.FLOAT, data_location=1)
    for key, value in pairs:
        tensor.external_data.add(key=key, value=value)
    for name, value in fields.items():
        setattr(tensor, name, value)
    return tensor


def at(location, offset="0", length="64"):
    return (("location", location), ("offset", offset), ("length", length))


BAD_REFERENCES = [
    at("../w.data"), at("/etc/passwd"), at("a/../../w.data"), at("..\\w.data"), at("./w.data"),
    at("w.data\0"), at("W.data"), at(""), at("unlisted.data"), at("file:///etc/passwd"),
    at("*/_ORT_MEM_ADDR_/*"), at("graphs/w.data"), at("g.onnx"), at("w.data/"), at("~/w.data"),
    at("w.data", "-1"), at("w.data", "0", "-64"), at("w.data", "1"), at("w.data", "0", "65"),
    at("w.data", "9" * 25), at("w.data", "0", "9" * 25), at("w.data", "0x0"), at("w.data", "0 "),
    at("w.data", "\u0661"), at("w.data", "0", "63"), at("w.data", "0", ""), at("w.data")[:2],
    (*at("w.data"), ("checksum", "x")), (*at("w.data"), ("basepath", "/")),
    (*at("w.data"), ("location", "/etc/passwd")), at("w.data")[1:], (),
]  # fmt: skip


def hidden(tensor):
    """Models that carry `tensor` in each place that can hold one."""
    port = tiny_bundle.value(tiny_bundle.SNR)

    def graph(**options):
        return helper.make_graph(
            [helper.make_node("Identity", ["snr_db"], ["y"])], "g", [port], [], **options
        )

    def model(made):
        return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)])

    plain = graph()
    inner = graph(initializer=[tensor])
    yield "initializer", model(inner)
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    yield "constant", model(helper.make_graph([constant], "g", [port], []))
    branch = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=plain)
    yield "subgraph", model(helper.make_graph([branch], "g", [port], []))
    deeper = helper.make_node(
        "If", ["x"], ["y"], then_branch=helper.make_graph([branch], "h", [], []), else_branch=plain
    )
    yield "deeper", model(helper.make_graph([deeper], "g", [port], []))
    sparse = graph()
    sparse.sparse_initializer.add(dims=[4]).values.CopyFrom(tensor)
    yield "sparse", model(sparse)
    indices = graph()
    indices.sparse_initializer.add(dims=[4]).indices.CopyFrom(tensor)
    yield "indices", model(indices)
    several = helper.make_node("Identity", ["x"], ["y"])
    several.attribute.add(name="t", type=onnx.AttributeProto.TENSORS).tensors.append(tensor)
    yield "tensors", model(helper.make_graph([several], "g", [port], []))
    function = model(graph())
    function.functions.append(
        helper.make_function("f", "F", [], [], [constant], [helper.make_opsetid("", 20)])
    )
    yield "function", function
    training = model(graph())
    training.training_info.add().algorithm.CopyFrom(inner)
    yield "training", training


def graph_code(model):
    try:
        summary = summarise(model.SerializeToString(), "graphs/g.onnx")
        check_policy(summary, "graphs/g.onnx", {"graphs/w.data": 64, "graphs/g.onnx": 64})
    except BundleError as error:
        return error.code
    return ""


@pytest.mark.parametrize("pairs", BAD_REFERENCES, ids=ascii)
def test_row_19_external_data_outside_the_bundle_is_refused_wherever_it_hides(pairs):
    for place, model in hidden(outside(*pairs)):
        assert graph_code(model) == "E_GRAPH_EXTERNAL", place


def test_row_19_external_data_that_claim_to_be_inside_are_refused():
    for tensor in (
        outside(*at("w.data"), data_location=0),
        outside(*at("w.data"), raw_data=bytes(64)),
    ):
        for place, model in hidden(tensor):
            assert graph_code(model) == "E_GRAPH_EXTERNAL", place


def test_row_19_an_honest_reference_passes():
    places = dict(hidden(outside(*at("w.data"))))
    assert graph_code(places["initializer"]) == ""
    assert graph_code(places["constant"]) == ""


def zipped(files, method=zipfile.ZIP_STORED, change=None):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as target:
        for name, data in files.items():
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.compress_type = method
            info.external_attr = 0o100644 << 16
            if change:
                change(info)
            target.writestr(info, data)
    return buffer.getvalue()


def made(*entries):
    """An archive of (name, data) in this project's own form."""
    listed, body = [], b""
    for name, data in entries:
        entry = Entry(name, len(data), zlib.crc32(data), len(body))
        body += local_header(entry) + data
        listed.append(entry)
    return body + directory(listed)


def overlapping(count):
    """Every entry shares one body: small on the disk, huge when unpacked."""
    data = bytes(10_000)
    header = local_header(Entry("a.txt", len(data), zlib.crc32(data), 0))
    body = header + data
    end = directory([Entry("a.txt", len(data), zlib.crc32(data), 0)])
    record = end[: -archive._END.size]
    tail = archive._END.pack(b"PK\x05\x06", 0, 0, count, count, len(record) * count, len(body), 0)
    return body + record * count + tail


def zip_mutants(files, packed):
    def encrypt(info):
        info.flag_bits = 1

    def link(info):
        info.external_attr = 0o120777 << 16

    names = list(files)
    yield "compressed", zipped(files, zipfile.ZIP_DEFLATED)
    yield "bzip2", zipped(files, zipfile.ZIP_BZIP2)
    yield "symlink", zipped(files, change=link)
    yield "prefix", b"#!/bin/sh\n" + packed
    yield "suffix", packed + b"x"
    yield "comment", packed[:-2] + b"\x01\x00x"
    yield "overlap", overlapping(200)
    yield "million", overlapping(60_000)
    start = packed.index(b"PK\x01\x02")
    flagged = bytearray(packed)
    flagged[start + 8] |= 1
    yield "encrypted", bytes(flagged)
    two = [(name, files[name]) for name in names]
    yield "duplicate", made(*two, two[0])
    body, tail = packed[:start], packed[start:]
    shifted = tail[:-6] + struct.pack("<L", start + 1) + tail[-2:]
    yield "gap", body + b"\0" + shifted
    for field, width in ((20, 4), (24, 4), (42, 4), (28, 2), (30, 2), (32, 2), (34, 2)):
        lying = bytearray(packed)
        lying[start + field : start + field + width] = b"\xff" * width
        yield f"lie {field}", bytes(lying)
    end = len(packed) - 22
    for field, width in ((4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4)):
        lying = bytearray(packed)
        lying[end + field : end + field + width] = b"\xff" * width
        yield f"end {field}", bytes(lying)
    zip64 = archive._END64.pack(b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, 1 << 60, 1 << 60)
    zip64 += archive._LOCATOR.pack(b"PK\x06\x07", 0, 0, 1)
    far = packed[:end] + zip64 + packed[end:-6] + b"\xff" * 4 + b"\0\0"
    yield "zip64", far


def test_row_20_other_zips_are_refused_from_their_directory(packed, tmp_path):
    with zipfile.ZipFile(io.BytesIO(packed)) as good:
        files = {name: good.read(name) for name in good.namelist()}
    target = tmp_path / "x.jscc"
    for kind, data in zip_mutants(files, packed):
        target.write_bytes(data)
        tracemalloc.start()
        with little_effort(kind):
            code = code_of(target)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20, kind
        tracemalloc.stop()
        assert code == ("E_BUNDLE_PATH" if kind == "lie 28" else "E_BUNDLE_ZIP"), kind


def test_row_20_entries_are_those_of_the_manifest_once_each(packed, tmp_path):
    with zipfile.ZipFile(io.BytesIO(packed)) as good:
        files = [(name, good.read(name)) for name in good.namelist()]
    target = tmp_path / "x.jscc"
    target.write_bytes(made(*files))
    assert code_of(target) == ""
    target.write_bytes(made(*files, ("extra.txt", b"x")))
    assert code_of(target) == "E_BUNDLE_UNLISTED"
    target.write_bytes(made(*files[1:]))
    assert code_of(target) == "E_BUNDLE_MISSING"
    target.write_bytes(made(*files, ("../extra", b"x")))
    assert code_of(target) == "E_BUNDLE_PATH"


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_row_20_any_mutant_is_refused(packed, tmp_path_factory, data):
    """Insertions, deletions and overwritten runs near the structures of the archive."""
    start = packed.index(b"PK\x01\x02")
    place = data.draw(st.integers(start, len(packed) - 1) | st.integers(0, len(packed) - 1))
    removed = data.draw(st.integers(0, 8))
    added = data.draw(st.binary(max_size=8))
    mutant = packed[:place] + added + packed[place + removed :]
    target = tmp_path_factory.getbasetemp() / "mutant.jscc"
    target.write_bytes(mutant)
    assert (code_of(target) == "") == (mutant == packed)


LOOSE = [
    '{"format": NaN}', '{"format": 1e999}', '{"format": 1, "format": 1}', '{"format": true}',
    '{"a":' * 100_000, "[" * 100_000, '{"format": ' + "1" * 5000 + "}", "\ufeff{}", "\ud800",
    '{"format": "\\ud800"}', '{"format": 1, "x": 1}', '{"format": "1"}', "[]", "null", "",
    '{"format": 1}' + " " * 1_000_000, '{"format": -Infinity}', "{format: 1}", "{'format': 1}",
    '{"format": 1e400}', '{"format": 01}', '{"format": 1.0}', "\0", '{"a": "\x00"}',
]  # fmt: skip


@pytest.mark.parametrize("text", LOOSE, ids=lambda text: ascii(text)[:30])
def test_row_21_loose_json_is_refused(text):
    for encoding in ("utf-8", "utf-16"):
        data = text.encode(encoding, "surrogatepass")
        with little_effort():
            with pytest.raises(BundleError, match=r"manifest.json at /") as caught:
                parse_manifest(data)
            assert caught.value.code == "E_MANIFEST"


@settings(max_examples=500, deadline=None)
@given(st.text(alphabet='{}[]",:0123456789eE.-+\\ truefalsnNI\n', max_size=80))
def test_row_21_any_text_is_json_as_others_read_it_or_refused(text):
    code = ""
    try:
        tree = strict_json(text.encode(), limit=1000)
    except BundleError as error:
        code = error.code
    assert code == "E_MANIFEST" if code else tree == json.loads(text)


def test_row_22_a_newer_manifest_says_what_to_do():
    with pytest.raises(BundleError, match="bundle is format 4, this runtime reads ≤ 3") as caught:
        parse_manifest(b'{"format": 4}')
    assert caught.value.code == "E_MANIFEST_VERSION"
    assert "update jscc-edge" in str(caught.value)


def test_row_23_a_running_receiver_does_not_see_its_files_change(tmp_path):
    bundle = tiny_bundle.write_diffusion(tmp_path / "a.jscc")
    graph, data = bundle.graph("denoise"), bytes(bundle.external("denoise")["denoise.onnx.data"])
    bias = bundle.tensor("bias").copy()
    for path in files_of(bundle.path):
        with path.open("r+b") as file:
            file.write(b"\xff" * path.stat().st_size)
            file.truncate(1)
    assert bundle.graph("denoise") == graph
    assert bytes(bundle.external("denoise")["denoise.onnx.data"]) == data
    assert np.array_equal(bundle.tensor("bias"), bias)
    shutil.rmtree(bundle.path)
    assert bundle.graph("denoise") == graph


def test_row_23_bytes_swapped_while_they_are_read_are_never_used(tmp_path):
    """A thread keeps replacing a graph; what opens is what the manifest lists."""
    bundle = tiny_bundle.write_codec(tmp_path / "a.jscc")
    path = bundle.path / "graphs" / "decode.onnx"
    good = path.read_bytes()
    stop = threading.Event()

    def swap():
        turn = 0
        while not stop.is_set():
            turn += 1
            beside = tmp_path / "beside"
            beside.write_bytes(good if turn % 2 else bytes(len(good)))
            os.replace(beside, path)

    thread = threading.Thread(target=swap)
    thread.start()
    outcomes = []
    try:
        for _ in range(100):
            try:
                outcomes.append(Bundle.open(bundle.path).graph("decode") == good)
            except BundleError as error:
                outcomes.append(error.code)
    finally:
        stop.set()
        thread.join()
    assert set(outcomes) <= {True, "E_HASH"}


def test_row_23_a_file_cut_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    with open_regular(path) as descriptor:
        path.write_bytes(bytes(10))
        with pytest.raises(BundleError, match="got 10 bytes, expected 100 bytes"):
            read_file(descriptor, "file", size=100, sha256="0" * 64, found=100)


def policy_code(nodes, initializers=(), domains=("",)):
    graph = helper.make_graph(nodes, "g", [], [], initializer=list(initializers))
    opsets = [helper.make_opsetid(domain, 20) for domain in domains]
    return graph_code(helper.make_model(graph, opset_imports=opsets))


def nested(levels):
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [], [])
    for _ in range(levels):
        node = helper.make_node("If", ["x"], ["y"], then_branch=graph, else_branch=graph)
        graph = helper.make_graph([node], "g", [], [])
    return list(graph.node)


def test_row_26_graph_bombs_are_refused():
    shape = numpy_helper.from_array(np.array([10**6, 10**5], np.int64), "s")
    fill = [helper.make_node("ConstantOfShape", ["s"], ["y"])]
    assert policy_code(fill, [shape]) == "E_GRAPH_POLICY"  # 400 GB from about 100 bytes
    body = helper.make_graph([helper.make_node("Identity", ["c"], ["d"])], "b", [], [])
    loop = helper.make_node("Loop", ["n", ""], ["y"], body=body)
    count = numpy_helper.from_array(np.array(1 << 62, np.int64), "n")
    assert policy_code([loop], [count]) == "E_GRAPH_POLICY"
    scan = helper.make_node("Scan", ["n"], ["y"], body=body, num_scan_inputs=1)
    assert policy_code([scan]) == "E_GRAPH_POLICY"
    assert policy_code(nested(8)) == "E_GRAPH_POLICY"
    assert policy_code(nested(12)) == "E_GRAPH_POLICY"
    custom = helper.make_node("Run", ["x"], ["y"], domain="evil.ops")
    assert policy_code([custom], domains=("", "evil.ops")) == "E_GRAPH_POLICY"


def test_row_26_a_million_nodes_are_refused_in_time():
    node = b"\x0a\x06\x22\x04Relu"  # one NodeProto in a GraphProto
    body = node * 1_000_000
    size = len(body)
    length = b""
    while size:
        length += bytes([size & 0x7F | (0x80 if size >> 7 else 0)])
        size >>= 7
    with little_effort():
        with pytest.raises(BundleError, match="got more than 100000 items of field 1") as caught:
            summarise(b"\x3a" + length + body)
        assert caught.value.code == "E_GRAPH_POLICY"


def test_row_26_nesting_without_end_is_refused():
    with pytest.raises(BundleError, match="got graphs nested over 8 deep"):
        summarise(helper.make_model(helper.make_graph(nested(10), "g", [], [])).SerializeToString())


@pytest.mark.parametrize(
    ("pointer", "value"),
    [
        (("signal", "planes"), 8),
        (("signal", "stride"), 8),
        (("signal", "snr_db_default"), 50.0),
        (("image", "multiple"), 6),
        (("image", "tile"), 12),
        (("image_output",), "planes"),
        (("program",), ["encode"]),
        (("selftest", "symbols"), "selftest_image"),
        (("tensors", "selftest_image", "shape"), [16, 16, 3]),
        (("tensors", "selftest_symbols", "shape"), [2, 2, 2]),
        (("stages", "decode", "opset"), 17),
        (("stages", "decode", "outputs", 0, "name"), "image"),
        (("stages", "decode", "inputs", 0, "shape"), ["batch", 4, "height/8", "width/8"]),
        (("stages", "encode", "outputs", 0, "shape"), ["batch", 4, "height/2", "width/2"]),
    ],
    ids=str,
)
def test_row_27_parts_that_do_not_fit_are_refused_at_load(folder, tmp_path, pointer, value):
    bundle = tmp_path / "a.jscc"
    shutil.copytree(folder, bundle)
    tree = json.loads((bundle / "manifest.json").read_bytes())
    place = tree
    for key in pointer[:-1]:
        place = place[key]
    place[pointer[-1]] = value
    seal(bundle, json.dumps(tree).encode())
    assert code_of(bundle) == "E_BUNDLE_INCONSISTENT"


def test_row_36_a_lying_npy_header_is_refused_before_memory_is_taken():
    def file(shape, body=b"1234", header=None):
        text = header or f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
        size = min(len(text), 65535)
        return np.frombuffer(
            b"\x93NUMPY\x01\x00" + size.to_bytes(2, "little") + text + body, np.uint8
        )

    lies = [
        file("(1000000000000,)"), file("(-1,)"), file("(1000000, 1000000, 1000000, 0)"),
        file("(1,)", b"12345"), file("(1,)", b"123"), file("", header=b" " * 70_000),
    ]  # fmt: skip
    tracemalloc.start()
    for data in lies:
        with pytest.raises(BundleError) as caught:
            read_npy(data, "tensors/x.npy", dtypes=("float32",))
        assert caught.value.code == "E_NPY"
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
