"""One zip for given contents: any unzip reads it, and nothing but it is read."""

import zipfile

import pytest

import tiny_bundle
from jscc.runtime import archive
from jscc.runtime.archive import Entry, directory, local_header
from jscc.runtime.bundle import Bundle
from jscc.runtime.errors import BundleError


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "tiny.jscc"
    tiny_bundle.write_diffusion(path, single_file=True)
    return path.read_bytes()


@pytest.fixture
def opened(tmp_path):
    def opening(data):
        (tmp_path / "x.jscc").write_bytes(data)
        return Bundle.open(tmp_path / "x.jscc")

    return opening


def test_a_folder_and_its_archive_are_the_same_bundle(good, opened, shared_bundles):
    folder = shared_bundles["diffusion"]
    bundle = opened(good)
    assert bundle.sha256 == folder.sha256
    assert bundle.manifest == folder.manifest
    assert bundle.graph("denoise") == folder.graph("denoise")


def test_any_unzip_reads_it(good, opened, tmp_path, shared_bundles):
    opened(good)
    with zipfile.ZipFile(tmp_path / "x.jscc") as found:
        assert found.testzip() is None
        found.extractall(tmp_path / "out")
    assert Bundle.open(tmp_path / "out").sha256 == shared_bundles["diffusion"].sha256


def test_the_bytes_depend_on_the_contents_only(good, tmp_path):
    tiny_bundle.write_diffusion(tmp_path / "again.jscc", single_file=True)
    assert (tmp_path / "again.jscc").read_bytes() == good


def test_large_files_use_zip64_as_others_read_it(tmp_path):
    """A sparse archive of 8 GiB: sizes at, below and above the limit, offsets on both sides."""
    sizes = [5, 0xFFFFFFFE, 0xFFFFFFFF, 3]
    entries = []
    for index, size in enumerate(sizes):
        entries.append(Entry(f"f{index}", size, 0, entries[-1].end if entries else 0))
    assert len(local_header(entries[1])) + 20 == len(local_header(entries[2]))
    tail = directory(entries)
    path = tmp_path / "sparse.zip"
    with path.open("wb") as file:
        for entry in entries:
            file.seek(entry.offset)
            file.write(local_header(entry))
        file.seek(entries[-1].end)
        file.write(tail)
    with zipfile.ZipFile(path) as found:
        assert [item.file_size for item in found.infolist()] == sizes
        assert [item.header_offset for item in found.infolist()] == [e.offset for e in entries]
    with archive.open_regular(path) as descriptor:
        assert archive._read_directory(descriptor, "sparse.zip") == entries


@pytest.mark.parametrize("cut", [0, 1, 4, 100, -1, -22, -23, -60])
def test_a_cut_archive_is_refused(good, opened, cut):
    with pytest.raises(BundleError) as caught:
        opened(good[:cut])
    assert caught.value.code in ("E_BUNDLE_TRUNCATED", "E_BUNDLE_ZIP")
    if cut > 3 or cut < 0:
        assert caught.value.code == "E_BUNDLE_TRUNCATED"
        assert f"got a zip cut at {len(good[:cut])} bytes, expected its end record" in str(
            caught.value
        )


def test_what_is_no_zip_is_refused(opened):
    with pytest.raises(BundleError, match=r"got b'\\x89PNG' at its head, expected a bundle"):
        opened(b"\x89PNG" + bytes(100))
    with pytest.raises(BundleError, match="got bytes behind the zip's end record"):
        opened(b"PK\x05\x06" + bytes(18) + b"x")
    with pytest.raises(BundleError, match=r"got no such entry, expected 'manifest.json'"):
        opened(b"PK\x05\x06" + bytes(18))


def test_a_directory_cut_in_a_record_is_refused(opened):
    end = archive._END.pack(b"PK\x05\x06", 0, 0, 1, 1, 4, 0, 0)
    with pytest.raises(BundleError, match="got half a record, expected a whole one"):
        opened(b"PK\x01\x02" + end)


def test_a_manifest_of_another_size_is_refused_unread(opened):
    entry = Entry("manifest.json", 1_000_001, 0, 0)
    with pytest.raises(BundleError, match="manifest.json: got 1000001 bytes, expected at most"):
        opened(local_header(entry) + bytes(entry.size) + directory([entry]))
