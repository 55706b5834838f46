"""Hub ids and paths are told apart, the cache is used as it lies, and failures say what to do."""

import errno
import re

import huggingface_hub
import pytest
from huggingface_hub import errors

from jscc.export.hub import PUBLISHED, fetch, locate
from jscc.export.hub import _bar as bar_class
from jscc.runtime.errors import CheckpointError, StorageError, UnavailableError

COMMIT = "318d46f7f7331ae95fb162b460c1ebfd7d20b6fa"


class Response:
    """As much of an HTTP response as the hub's errors look at."""

    status_code = 500
    headers = {}  # noqa: RUF012 - never changed
    request = None
    text = ""


def make_cache(folder, hub_id=PUBLISHED[1], names=("config.yaml", "model.ckpt"), commit=COMMIT):
    """The layout of the hub library's cache, with links into ``blobs``."""
    repository = folder / f"models--{hub_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    for part in (repository / "blobs", repository / "refs", snapshot):
        part.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    for name in names:
        (repository / "blobs" / f"{commit[:4]}-{name}").write_text(name)
        (snapshot / name).symlink_to(f"../../blobs/{commit[:4]}-{name}")
    return snapshot


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
@pytest.mark.parametrize("weights", ["model.ckpt", "model.safetensors"])
def test_what_the_cache_holds_is_found_without_network(tmp_path, revision, weights):
    snapshot = make_cache(tmp_path, names=("config.yaml", weights))
    found = fetch(PUBLISHED[1], revision=revision, cache_dir=tmp_path, local_files_only=True)
    assert found == snapshot
    assert (found / weights).read_text() == weights
    assert locate(PUBLISHED[1], cache_dir=tmp_path, local_files_only=True) == snapshot


def test_both_files_are_of_one_commit(tmp_path):
    """The main branch has moved on, but only its configuration was fetched."""
    make_cache(tmp_path, commit="1" * 40)
    make_cache(tmp_path, names=("config.yaml",), commit="2" * 40)
    with pytest.raises(UnavailableError, match=r"got no model\.ckpt in the cache"):
        fetch(PUBLISHED[1], cache_dir=tmp_path, local_files_only=True)


def test_an_empty_cache_without_network_says_so(tmp_path):
    match = rf"{PUBLISHED[0]}@v1: got no config\.yaml in the cache and no way to the hub"
    with pytest.raises(UnavailableError, match=match) as caught:
        fetch(PUBLISHED[0], revision="v1", cache_dir=tmp_path, local_files_only=True)
    assert (caught.value.code, caught.value.exit_status) == ("E_HUB", 69)


@pytest.mark.parametrize(
    ("error", "got"),
    [
        (errors.GatedRepoError("no", response=Response()), "whose terms must be accepted"),
        (errors.RepositoryNotFoundError("no", response=Response()), "got no such repository"),
        (errors.RevisionNotFoundError("no", response=Response()), "got no such revision"),
        (errors.LocalEntryNotFoundError("no"), "no way to the hub"),
        (errors.RemoteEntryNotFoundError("no", response=Response()), "without config.yaml"),
        (errors.HFValidationError("no"), "a name that the hub refuses"),
        (errors.HfHubHTTPError("503 \x1b[2J\nmore", response=Response()), r"(503 \x1b[2J)"),
        (errors.OfflineModeIsEnabled("offline mode"), "got OfflineModeIsEnabled (offline mode)"),
        (TimeoutError("timed out"), "got TimeoutError (timed out)"),
        (RuntimeError(), "got RuntimeError (no message)"),
    ],
)
def test_every_failure_is_one_line_with_a_remedy(monkeypatch, error, got):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(UnavailableError, match=re.escape(got)) as caught:
        fetch(PUBLISHED[0])
    assert caught.value.code == "E_HUB"
    assert caught.value.__cause__ is error
    assert "\n" not in str(caught.value)


def test_a_repository_without_weights(monkeypatch, tmp_path):
    asked = []

    def answer(hub_id, name, *, revision, **options):
        asked.append((name, revision))
        if name == "config.yaml":
            return str(tmp_path / COMMIT / name)
        raise errors.RemoteEntryNotFoundError("no", response=Response())

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", answer)
    with pytest.raises(UnavailableError, match=r"got a repository without model\.ckpt"):
        fetch(PUBLISHED[0], revision="v2")
    assert asked == [
        ("config.yaml", "v2"),
        ("model.safetensors", COMMIT),
        ("model.ckpt", COMMIT),
    ]


def test_a_full_disk_is_not_the_hubs_fault(monkeypatch):
    def fail(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(
        StorageError, match=r"got a full disk while fetching config\.yaml"
    ) as caught:
        fetch(PUBLISHED[0])
    assert (caught.value.code, caught.value.exit_status) == ("E_DISK_FULL", 74)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(UnavailableError, match="got no huggingface_hub package"):
        fetch(PUBLISHED[0])


def test_a_path_wins_over_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert locate("owner/name") == (tmp_path / "owner" / "name").relative_to(tmp_path)
    assert locate(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    "name", ["missing", "./a/b", "/a/b", "a/b/c", "a/b.ckpt", "a b/c", "nul\0", "x" * 5000]
)
def test_what_is_neither_path_nor_hub_id(name):
    with pytest.raises(CheckpointError, match="neither a file nor a folder nor a hub id") as caught:
        locate(name)
    assert caught.value.code == "E_CKPT_NOT_FOUND"


def test_progress_is_told_and_nothing_is_drawn(capfd):
    told = []
    bar = bar_class(lambda *news: told.append(news))(
        desc="model.ckpt", total=100, unit="B", unit_scale=True, mininterval=0, miniters=1
    )
    with bar:
        bar.update(40)
        bar.update(60)
    assert told[0] == ("model.ckpt", 0, 100)
    assert told[-1] == ("model.ckpt", 100, 100)
    assert capfd.readouterr() == ("", "")
