"""jscc: finds its commands, imports no more than it must, and always ends in the contract."""

import importlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import jscc.__main__ as dispatch
from jscc.__main__ import COMMANDS, main

COMMAND = (sys.executable, "-m", "jscc")


def run(*arguments, code=None):
    command = COMMAND if code is None else (sys.executable, "-c", code)
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, (_, what) in COMMANDS.items():
        assert f"  {name} " in out
        assert what in out


def test_no_command_is_a_usage_error(capsys):
    assert main([]) == 2
    assert "usage: jscc COMMAND" in capsys.readouterr().out


def test_the_version_is_the_distribution_s(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"jscc-edge {importlib.metadata.version('jscc-edge')}\n"


def test_an_unknown_command_names_its_neighbour(capsys):
    assert main(["recieve"]) == 2
    assert "got 'recieve', expected inspect, send" in (error := capsys.readouterr().err)
    assert error.endswith("Did you mean receive? [E_USAGE]\n")


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "export"])
def test_every_command_helps(capsys, name):
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: jscc {name} ")


def test_a_command_whose_package_is_missing(capsys, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(dispatch.importlib, "import_module", missing)
    assert main(["export"]) == 69
    assert capsys.readouterr().err == (
        "jscc export: module 'torch': got nothing, expected it installed. "
        "Run: pip install 'jscc-edge[export]' [E_MODULE]\n"
    )


def test_the_export_script_is_the_export_command(capsys, monkeypatch):
    def missing(name):
        assert name == COMMANDS["export"][0]
        raise ModuleNotFoundError("No module named 'rich'", name="rich")

    monkeypatch.setattr(dispatch.importlib, "import_module", missing)
    monkeypatch.setattr(sys, "argv", ["jscc-export", "--model", "x"])
    assert dispatch.export() == 69
    assert "Run: pip install 'jscc-edge[export]'" in capsys.readouterr().err


def test_the_dispatcher_alone_imports_no_array_library():
    code = (
        "import sys; from jscc.__main__ import main; main(['--help']);"
        "print([name for name in ('numpy', 'onnxruntime', 'PIL', 'torch') if name in sys.modules])"
    )
    assert run(code=code).stdout.endswith("[]\n")


def test_receiving_imports_nothing_of_the_host():
    code = (
        "import sys, jscc.runtime.commands.receive, jscc.runtime.commands.simulate;"
        "import jscc.benchmarks.cli;"
        "print([n for n in ('torch', 'onnx', 'scipy', 'safetensors') if n in sys.modules])"
    )
    assert run(code=code).stdout == "[]\n"


def test_the_whole_link_in_processes_of_its_own(shared_bundles, tmp_path):
    bundle = shared_bundles["codec"].path
    photo = tmp_path / "photo.png"
    Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).save(photo)
    sent, received, image = (tmp_path / n for n in ("s.sigmf-meta", "r.sigmf-meta", "x.png"))
    for arguments in (
        ("send", bundle, photo, "-o", sent),
        ("channel", sent, "-o", received, "--snr", 10, "--seed", 0),
        ("receive", bundle, received, "-o", image),
    ):
        ran = run(*arguments)
        assert (ran.returncode, ran.stderr) == (0, "")
    assert np.asarray(Image.open(image)).shape == (16, 16, 3)
    ran = run("receive", bundle, received, "-o", image)
    assert ran.returncode == 73
    assert ran.stdout == ""
    assert ran.stderr.startswith("jscc receive: output ")
    assert ran.stderr.count("\n") == 1


def test_a_reader_that_leaves_is_no_traceback(shared_bundles):
    command = [*COMMAND, "inspect", str(shared_bundles["diffusion"].path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        error = process.stderr.read().decode()
        assert process.wait() in (0, 74)
    assert "Traceback" not in error
