"""Kernels compiled for this host, once for all tests of a device."""

import pytest

from host_kernels import make_host


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    """The kernels on this machine's processor."""
    return make_host(tmp_path_factory)


class LaterHost:
    """The same, compiled when something is launched; a skip then where nothing compiles."""

    def __init__(self, tmp_path_factory):
        self.factory, self.host = tmp_path_factory, None

    def start_with(self, *given):
        self.host = self.host or make_host(self.factory)
        self.host.start_with(*given)


@pytest.fixture(scope="session")
def later_host(tmp_path_factory):
    """For a fake device that few tests launch something on."""
    return LaterHost(tmp_path_factory)
