"""The report: what ptxas says, read right; every kernel within registers on every architecture."""

import re
import shutil
import subprocess
import sys

import pytest

from jscc.kernels.report import (
    ARCHITECTURES,
    Use,
    compile_kernel,
    known_architectures,
    main,
    markdown,
    parse_uses,
)
from jscc.kernels.sources import KERNELS, THREADS, entries_of

# As ptxas of CUDA 13.0 prints it, two architectures, one spill, and shared memory.
SAID = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'to_uint8' for 'sm_75'
ptxas info    : Function properties for to_uint8
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 48 registers, used 0 barriers, 416 bytes cmem[0]
ptxas info    : Compile time = 226.468 ms
ptxas info    : Compiling entry function 'blur' for 'sm_75'
ptxas info    : Function properties for blur
    24 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 34 registers, used 0 barriers, 408 bytes cmem[0]
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'blur' for 'sm_120'
ptxas info    : Function properties for blur
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers
ptxas info    : Compiling entry function 'shared_sum' for 'sm_75'
ptxas info    : Function properties for shared_sum
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 1 barriers, 1024 bytes smem, 368 bytes cmem[0]
ptxas info    : Compile time = 16.679 ms
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'shared_sum' for 'sm_120'
ptxas info    : Function properties for shared_sum
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 14 registers, used 1 barriers, 2048 bytes smem
"""
USES = (
    Use("to_uint8", "75", registers=48, stack=0, spilled=0, shared=0),
    Use("blur", "75", registers=34, stack=24, spilled=20, shared=0),
    Use("blur", "120", registers=40, stack=0, spilled=0, shared=0),
    Use("shared_sum", "75", registers=12, stack=0, spilled=0, shared=1024),
    Use("shared_sum", "120", registers=14, stack=0, spilled=0, shared=2048),
)
REGISTERS = 65536  # of a multiprocessor, on each of these architectures


def test_what_ptxas_says_is_read():
    assert parse_uses(SAID) == USES


def test_the_table_has_a_row_for_each_entry():
    assert markdown(USES).splitlines() == [
        "| registers | sm_75 | sm_120 | stack, bytes | spills, bytes | shared memory, bytes |",
        "| --- | --: | --: | --: | --: | --: |",
        "| blur | 34 | 40 | 24 | 20 | 0 |",
        "| shared_sum | 12 | 14 | 0 | 0 | 2048 |",
        "| to_uint8 | 48 |  | 0 | 0 | 0 |",
    ]


def test_without_a_compiler_it_says_so(capsys):
    assert main(["--nvcc", "no-such-nvcc"]) == 69
    assert "nvcc: got no program 'no-such-nvcc', expected" in capsys.readouterr().err


def test_a_compiler_that_fails_is_passed_on(tmp_path, capsys):
    broken = tmp_path / "nvcc"
    broken.write_text("#!/bin/sh\necho 'out of order' >&2\nexit 1\n")
    broken.chmod(0o755)
    assert main(["--nvcc", str(broken)]) == 1
    assert capsys.readouterr().err == "out of order\n"


def test_it_is_a_command():
    command = [sys.executable, "-m", "jscc.kernels.report", "--nvcc", "no-such-nvcc"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (69, "")


@pytest.fixture(scope="module")
def nvcc():
    found = shutil.which("nvcc")
    if found is None:
        pytest.skip("nvcc is not on this machine")
    return found


def test_architectures_are_those_that_the_compiler_knows(nvcc):
    known = known_architectures(nvcc)
    assert {"80", "90"} <= set(known) <= set(ARCHITECTURES)


OLDEST_AND_NEWEST = ("75", "120")


@pytest.mark.slow
@pytest.mark.parametrize(
    "architectures",
    [OLDEST_AND_NEWEST, pytest.param(ARCHITECTURES, marks=pytest.mark.exhaustive)],
    ids=["oldest and newest", "all"],
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_compiles_without_a_warning_or_a_spill(nvcc, kernel, architectures):
    known = set(known_architectures(nvcc)) & set(architectures)
    uses = compile_kernel(nvcc, kernel, sorted(known))
    assert {(use.entry, use.architecture) for use in uses} == {
        (entry, name) for entry in entries_of(kernel) for name in known
    }
    for use in uses:
        assert use.spilled == 0
        assert use.registers * THREADS <= REGISTERS // 2  # two blocks at once, at least


@pytest.mark.slow
def test_a_warning_is_an_error(nvcc, monkeypatch):
    source = "__global__ void unpack(int *p) { int unused; *p = 1; }\n"
    monkeypatch.setattr("jscc.kernels.report.source_of", lambda kernel: source)
    with pytest.raises(subprocess.CalledProcessError) as caught:
        compile_kernel(nvcc, "unpack", ["90"])
    assert re.search("unused", caught.value.stderr)
