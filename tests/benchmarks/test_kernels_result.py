"""The recorded result of the kernels: what the compiler said, nothing made up, nothing lost."""

import json
import shutil

import pytest

from jscc.benchmarks.cli import main
from jscc.benchmarks.kernels import table
from jscc.benchmarks.readme_tables import render
from jscc.kernels.sources import KERNELS, entries_of

# As nvcc of CUDA 13.0 answers, about a kernel with one entry.
NVCC = """\
#!/bin/sh
case "$1" in
--list-gpu-code) printf 'sm_75\\nsm_90\\nsm_999\\n';;
--version) echo 'Cuda compilation tools, release 13.0, V13.0.48';;
*)
for sm in 75 90; do
cat >&2 <<END
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'some' for 'sm_$sm'
ptxas info    : Function properties for some
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used $sm registers, used 1 barriers, 1024 bytes smem, 368 bytes cmem[0]
END
done;;
esac
"""


def program(folder, text):
    path = folder / "nvcc"
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_what_the_compiler_said_is_recorded(tmp_path, capsys):
    nvcc, out = program(tmp_path, NVCC), tmp_path / "out.json"
    assert main(["kernels", "--nvcc", str(nvcc), "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert (result["kind"], result["versions"]["nvcc"]) == ("kernels", "13.0")
    assert result["rows"] == [
        {
            "entry": "some", "architecture": name, "registers": int(name), "stack": 8,
            "spilled": 16, "shared": 1024,
        }
        for _ in KERNELS for name in ("75", "90")
    ]  # fmt: skip
    row = "| some | 75 | 90 | 8 | 16 | 1024 |"
    assert row in table(result)
    assert row in capsys.readouterr().out
    assert f"{row}\n\nMeasured on " in render(out)
    assert " and nvcc 13.0, at commit " in render(out)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "nvcc: got no program "),
        ("#!/bin/sh\necho 'out of order' >&2\nexit 1\n", "nvcc: got 'out of order', expected it"),
        ("no program at all", "nvcc: got "),
    ],
)
def test_a_compiler_that_is_none_is_one_line(tmp_path, capsys, text, words):
    from jscc.__main__ import main as jscc

    nvcc = tmp_path / "nvcc" if text is None else program(tmp_path, text)
    out = tmp_path / "out.json"
    assert jscc(["bench", "kernels", "--nvcc", str(nvcc), "--json", str(out)]) == 69
    told = capsys.readouterr().err
    assert told.startswith(f"jscc bench: {words}")
    assert told.endswith("[E_NVCC]\n")
    assert not out.exists()


@pytest.mark.exhaustive
def test_every_entry_is_recorded(tmp_path):
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not on this machine")
    out = tmp_path / "out.json"
    assert main(["kernels", "--json", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    entries = {entry for kernel in KERNELS for entry in entries_of(kernel)}
    assert {row["entry"] for row in rows} == entries
    places = [(row["entry"], row["architecture"]) for row in rows]
    assert len(places) == len(set(places)) == len(entries) * len({each for _, each in places})
