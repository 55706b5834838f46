"""Kernels compiled for this host, once for all tests of a device."""

import pytest

from host_kernels import make_host


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    """The kernels on this machine's processor."""
    return make_host(tmp_path_factory)
