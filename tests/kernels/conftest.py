"""Kernels on this host, built once for all their tests."""

import pytest

from host_kernels import HostKernels, PtxKernels, make_host


@pytest.fixture(
    scope="session",
    params=[HostKernels, pytest.param(PtxKernels, marks=pytest.mark.slow)],
    ids=["source", "ptx"],
)
def host(request, tmp_path_factory):
    """The kernels' sources as C++, and the PTX that a device would get."""
    return make_host(tmp_path_factory, request.param)
