"""Private folder: what this user makes is taken, what others could write to is not."""

import stat

import pytest

from jscc.runtime.errors import DataError
from jscc.runtime.private_folder import make_private
from jscc.runtime.trust import Asset

CACHE = Asset(DataError, "E_CACHE", "Make another")


def test_a_fresh_folder_below_a_setgid_one_is_private(tmp_path):
    """There the kernel hands the bit on, and ``chmod 700`` does not clear it."""
    tmp_path.chmod(0o2755)
    folder = tmp_path / "cache"
    make_private(folder, CACHE)
    if not folder.stat().st_mode & stat.S_ISGID:
        pytest.skip("this system hands no setgid bit on")
    make_private(folder, CACHE)


@pytest.mark.parametrize("mode", [0o701, 0o710, 0o720, 0o2770, 0o1777])
def test_a_folder_that_lets_others_in_is_refused(tmp_path, mode):
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(DataError, match=f"got mode {mode:04o}, expected 0700") as caught:
        make_private(folder, CACHE)
    assert caught.value.code == "E_CACHE_MODE"
    folder.chmod(0o700)
    make_private(folder, CACHE)
