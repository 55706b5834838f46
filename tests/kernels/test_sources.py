"""The kernels' sources: complete, self-contained, and rounded the same way by any CUDA compiler."""

import re
import shutil
import subprocess

import pytest

from jscc.kernels.sources import FOLDER, KERNELS, THREADS, entries_of, source_of

# Instructions that round otherwise than the reference: contracted, approximate, flushed to zero.
FORBIDDEN = re.compile(r"\b(fma|mad)\.[a-z.]*f(32|64)|\.approx|\.full|\.ftz")


def test_every_kernel_is_listed_and_has_its_reference():
    found = {path.stem for path in FOLDER.glob("*/*.cu")}
    assert found == set(KERNELS)
    for name in KERNELS:
        assert (FOLDER / name / f"{name}.cu").is_file()
        assert (FOLDER / name / "reference.py").is_file()


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_source_needs_no_other_file(kernel):
    source = source_of(kernel)
    assert "#include" not in source
    assert source.count('#line 1 "arithmetic.cuh"') == 1


@pytest.mark.parametrize("kernel", KERNELS)
def test_lines_keep_their_numbers(kernel):
    name, number, checked = "", 0, 0
    for line in source_of(kernel).splitlines():
        if found := re.fullmatch(r'#line (\d+) "(.+)"', line):
            number, name = int(found[1]), found[2]
            continue
        own = (FOLDER / name).read_text().splitlines()[number - 1]
        assert line == own or (own.startswith("#include") and not line)
        number, checked = number + 1, checked + 1
    assert checked > 100


def test_entries_say_what_they_take():
    assert list(entries_of("to_uint8")) == ["blur", "to_uint8"]
    (parameters,) = entries_of("philox_normal").values()
    assert [(each.name, each.kind) for each in parameters] == [
        ("normals", "pointer"),
        *((name, "uint64") for name in ("seed", "frame", "step", "count")),
    ]
    kinds = {each.name: each.kind for each in entries_of("unpack")["unpack"]}
    assert kinds["erased"] == "pointer"
    assert (kinds["gain_re"], kinds["divide"]) == ("float32", "uint32")


def test_what_was_read_once_is_not_read_again_and_cannot_be_changed(monkeypatch):
    entries, source = entries_of("unpack"), source_of("unpack")
    monkeypatch.setattr("jscc.kernels.sources.FOLDER", FOLDER / "nowhere")
    assert entries_of("unpack") is entries
    assert source_of("unpack") == source
    with pytest.raises(TypeError):
        entries["unpack"] = ()


def test_unknown_kernels_are_named():
    with pytest.raises(LookupError, match="kernel: got 'advanse', expected one of advance, nu"):
        source_of("advanse")


def test_python_and_the_compiler_agree_on_a_blocks_threads():
    assert f"constexpr int THREADS = {THREADS};" in source_of("advance")


@pytest.fixture(scope="module")
def nvcc():
    found = shutil.which("nvcc")
    if found is None:
        pytest.skip("nvcc is not on this machine")
    return found


def ptx_of(nvcc, source, folder):
    """What nvcc makes of a source that nothing tells it not to contract."""
    path = folder / "kernel.cu"
    path.write_text(source)
    built = path.with_suffix(".ptx")
    command = [nvcc, "-ptx", "--std=c++17", "--fmad=true", "-arch=compute_90"]
    subprocess.run([*command, "-o", built, path], check=True)
    return built.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
def test_rounding_does_not_depend_on_the_compilers_options(nvcc, kernel, tmp_path):
    ptx = ptx_of(nvcc, source_of(kernel), tmp_path)
    assert re.search(r"\b(mul|add|div)\.rn\.f32", ptx) or kernel == "philox_normal"
    assert FORBIDDEN.findall(ptx) == []


@pytest.mark.slow
def test_the_search_finds_what_it_looks_for(nvcc, tmp_path):
    """A source with plain operators is contracted."""
    source = source_of("advance").replace("__fmul_rn(a, b)", "a * b")
    source = source.replace("__fadd_rn(a, b)", "a + b")
    assert FORBIDDEN.search(ptx_of(nvcc, source, tmp_path))
