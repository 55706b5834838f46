"""Hub: finds a checkpoint by path, or fetches a published one from the Hugging Face hub.

The official DiffJSCC checkpoints are repositories with ``config.yaml`` and ``model.ckpt``.
"""

import errno
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jscc.export.checkpoint import NAMES
from jscc.runtime.errors import CheckpointError, JsccError, StorageError, UnavailableError

PUBLISHED = (
    "Mingyuyang/DiffJSCC-OpenImage-CBR-1-384",
    "Mingyuyang/DiffJSCC-OpenImage-CBR-1-96",
    "Mingyuyang/DiffJSCC-CelebA-CBR-1-768",
    "Mingyuyang/DiffJSCC-CelebA-CBR-1-192",
)
CONFIG = "config.yaml"

Progress = Callable[[str, int, int], None]  # what, bytes done, bytes in all (0: unknown)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_FILE_ENDINGS = (".ckpt", ".pt", ".pth", ".bin", ".safetensors", ".yaml")


def locate(
    name: str,
    *,
    revision: str | None = None,
    cache_dir: Path | None = None,
    local_files_only: bool = False,
    progress: Progress | None = None,
) -> Path:
    """The file or folder that `name` means: a path where one exists, else a hub id to fetch.

    Raises:
        CheckpointError: ``E_CKPT_NOT_FOUND``, it is neither.
        UnavailableError: ``E_HUB``, the hub does not give it.
        StorageError: ``E_DISK_FULL``, there is no room for it.
    """
    path = Path(name)
    if _exists(path):
        return path
    if _HUB_ID.fullmatch(name) is None or name.endswith(_FILE_ENDINGS):
        raise CheckpointError(
            "E_CKPT_NOT_FOUND",
            f"{name!r}: got neither a file nor a folder nor a hub id (owner/name), expected one "
            f"of them. Check the path, or give a hub id such as {PUBLISHED[1]}.",
        )
    return fetch(
        name,
        revision=revision,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        progress=progress,
    )


def fetch(
    hub_id: str,
    *,
    revision: str | None = None,
    cache_dir: Path | None = None,
    local_files_only: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Fetch ``config.yaml`` and the weights of `hub_id`, and return their folder.

    Both come from one commit. What the cache holds already is not fetched again.

    Args:
        hub_id: ``owner/name``.
        revision: Branch, tag or commit; the main branch by default.
        cache_dir: The hub library's cache; its own default otherwise.
        local_files_only: Look into the cache only.
        progress: Told about the download; the hub's own bars are shown otherwise, on a terminal.

    Raises:
        UnavailableError: ``E_HUB``, with the reason.
        StorageError: ``E_DISK_FULL``, there is no room for it.
    """
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError as error:
        raise UnavailableError(
            "E_HUB",
            f"{hub_id}: got no huggingface_hub package, expected it for downloads. "
            "Run: pip install 'jscc-edge[export]'",
        ) from error

    def get(name: str, commit: str | None) -> Path:
        return Path(
            hf_hub_download(
                hub_id,
                name,
                revision=commit,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                tqdm_class=None if progress is None else _bar(progress),
            )
        )

    wanted = CONFIG
    try:
        folder = get(CONFIG, revision).parent
        for wanted in NAMES:
            try:
                return get(wanted, folder.name).parent
            except EntryNotFoundError:
                if wanted == NAMES[-1]:
                    raise
    except Exception as error:  # whatever the library or its network stack raise, once
        raise _explain(f"{hub_id}{f'@{revision}' if revision else ''}", wanted, error) from error
    raise AssertionError("the last name either returns or raises")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long a name, or a NUL in it
        return False


def _explain(source: str, name: str, error: Exception) -> JsccError:
    """Turn what the hub library raised into one line with a remedy; the cause stays attached."""
    from huggingface_hub import errors

    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            "E_DISK_FULL",
            f"{source}: got a full disk while fetching {name}, expected up to 10 GB of room. "
            "Free some, or name another cache folder.",
        )
    reasons: tuple[tuple[type[Exception], str, str], ...] = (
        (
            errors.GatedRepoError,
            "a repository whose terms must be accepted",
            "Accept them on its page, then run: hf auth login",
        ),
        (
            errors.RepositoryNotFoundError,
            "no such repository",
            f"Check the name (published: {', '.join(PUBLISHED)}); for a private one run: "
            "hf auth login",
        ),
        (errors.RevisionNotFoundError, "no such revision", "Check --revision."),
        (
            errors.LocalEntryNotFoundError,
            f"no {name} in the cache and no way to the hub",
            "Connect to the network, or copy the repository here and give the folder.",
        ),
        (
            errors.EntryNotFoundError,
            f"a repository without {name}",
            f"Give a repository that holds {CONFIG} and {' or '.join(NAMES)}.",
        ),
        (errors.HFValidationError, "a name that the hub refuses", "Check the hub id."),
        (
            errors.HfHubHTTPError,
            f"an error of the hub ({_line(error)})",
            "Try again later, or download it by hand and give the folder.",
        ),
    )
    for kind, got, remedy in reasons:
        if isinstance(error, kind):
            return UnavailableError("E_HUB", f"{source}: got {got}, expected {name}. {remedy}")
    return UnavailableError(
        "E_HUB",
        f"{source}: got {type(error).__name__} ({_line(error)}) while fetching {name}, expected a "
        "download. Check the network, or download it by hand and give the folder.",
    )


def _line(error: Exception) -> str:
    """The first line of a message, printable and short."""
    lines = str(error).strip().splitlines()
    return ascii(lines[0][:120])[1:-1] if lines else "no message"


def _bar(progress: Progress) -> type[Any]:
    """A progress bar, as the hub library wants one, that draws nothing but tells `progress`."""
    from tqdm.std import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):  # type: ignore[misc]
        monitor_interval = 0

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "file": io.StringIO(), "disable": False})

        def display(self, msg: str | None = None, pos: int | None = None) -> bool:
            progress(str(self.desc), int(self.n), int(self.total or 0))
            return True

    return Bar
