"""Terminal: one line for every failure, the status of the contract, results kept apart."""

import errno
import io
import json
import os
import re
import signal
import sys
import tomllib
from pathlib import Path

import pytest

from jscc.runtime import errors
from jscc.runtime.tensorrt.library import FULL, RTX, remedy_for
from jscc.runtime.terminal import (
    INSTALL,
    Parser,
    Progress,
    notice,
    printable,
    run,
    say,
    say_json,
    table,
)


def raising(error):
    def main(arguments):
        raise error

    return main


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (errors.UsageError, 2),
        (errors.SymbolsError, 65),
        (errors.ImageError, 65),
        (errors.BundleError, 65),
        (errors.UnavailableError, 69),
        (errors.OutputError, 73),
        (errors.StorageError, 74),
        (errors.BusyError, 75),
    ],
)
def test_our_errors_are_one_line_and_their_status(capsys, kind, status):
    assert run("jscc receive", raising(kind("E_X", "a: got 1, expected 2. Do 3.")), []) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "jscc receive: a: got 1, expected 2. Do 3. [E_X]\n"


def test_interruption_is_130(capsys):
    assert run("jscc x", raising(KeyboardInterrupt()), []) == 130
    assert capsys.readouterr().err == "jscc x: interrupted\n"


def test_termination_unwinds_and_is_143():
    unwound = []

    def main(arguments):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            unwound.append(True)

    before = signal.getsignal(signal.SIGTERM)
    assert run("jscc x", main, []) == 143
    assert unwound == [True]
    assert signal.getsignal(signal.SIGTERM) == before


def test_system_errors_are_one_line(capsys):
    error = PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/some/file")
    assert run("jscc x", raising(error), []) == 74
    assert capsys.readouterr().err == "jscc x: file '/some/file': got Permission denied [E_IO]\n"


def test_out_of_memory_is_one_line(capsys):
    assert run("jscc x", raising(MemoryError()), []) == 69
    assert capsys.readouterr().err.startswith("jscc x: memory: got too little, expected enough.")


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("torch.nn", "pip install 'jscc-edge[export]'"),
        ("onnxruntime", "pip install jscc-edge"),
        ("PIL", "pip install pillow"),
    ],
)
def test_a_missing_package_names_the_command_that_installs_it(capsys, module, command):
    error = ModuleNotFoundError(f"No module named {module!r}", name=module)
    assert run("jscc x", raising(error), []) == 69
    root = module.partition(".")[0]
    line = f"jscc x: module {root!r}: got nothing, expected it installed. Run: {command} [E_MODULE]"
    assert capsys.readouterr().err == line + "\n"


def test_a_missing_module_of_ours_is_not_hidden():
    """A broken import inside the package is a fault, not a matter of extras."""
    error = ModuleNotFoundError("No module named 'jscc.runtime.nope'", name="jscc.runtime.nope")
    with pytest.raises(ModuleNotFoundError, match=r"jscc\.runtime\.nope"):
        run("jscc x", raising(error), [])


def test_faults_of_the_program_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run("jscc x", lambda arguments: 1 // 0, [])


@pytest.mark.parametrize(("code", "status"), [(0, 0), (3, 3), (None, 0)])
def test_argparse_exits_keep_their_status(code, status):
    assert run("jscc x", raising(SystemExit(code)), []) == status


class Closed(io.StringIO):
    """A pipe whose reader has left."""

    def flush(self):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


class Full(io.StringIO):
    """A file on a full disk."""

    def flush(self):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("stream", "words"), [(Closed, "stdout was closed"), (Full, "No space left on device")]
)
def test_a_result_that_cannot_be_written_is_a_failure(monkeypatch, capsys, stream, words):
    monkeypatch.setattr(sys, "stdout", stream())
    assert run("jscc x", lambda arguments: 0, []) == 74
    assert words in capsys.readouterr().err


def test_parsers_complain_in_one_line(capsys):
    parser = Parser(prog="jscc x")
    parser.add_argument("--n", type=int)

    def main(arguments):
        parser.parse_args(arguments)
        return 0

    assert run("jscc x", main, ["--n", "many\nlines"]) == 2
    _, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert "argument --n: invalid int value: 'many\\nlines'. See jscc x --help. [E_USAGE]" in err


def test_control_characters_and_lone_surrogates_are_escaped():
    assert printable("a\x1b[31mb\r\n\u202ec\udc80") == "a\\x1b[31mb\\r\\n\\u202ec\\udc80"
    assert printable("å ü 漢 ≤") == "å ü 漢 ≤"
    assert len(printable("x" * 10**6)) == 2001


def test_results_and_remarks_go_to_different_streams(capsys):
    say("result")
    notice("remark\nof two lines")
    say_json({"b": 1.5, "a": None})
    out, err = capsys.readouterr()
    assert err == "remark\\nof two lines\n"
    first, _, rest = out.partition("\n")
    assert first == "result"
    assert json.loads(rest) == {"a": None, "b": 1.5}


def test_json_is_strict():
    with pytest.raises(ValueError, match="not JSON compliant"):
        say_json({"a": float("nan")})


def test_tables_are_aligned():
    text = table([("name", "ms"), ("long name", "1")], header=True)
    assert text.splitlines() == ["name       ms", "---------  --", "long name  1"]


class Tty(io.StringIO):
    """A terminal."""

    def isatty(self):
        return True


def test_progress_shows_on_terminals_only(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    for stream, shown in ((Tty(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        progress = Progress("receive")
        for part in ("decode", "denoise", "denoise"):
            progress.advance(part)
        progress.close()
        assert ("receive: decode 1  denoise 2" in stream.getvalue()) == shown
        assert bool(stream.getvalue()) == shown


def test_progress_is_drawn_at_most_ten_times_a_second(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("time.monotonic", lambda: next(clock) / 100)
    monkeypatch.setattr(sys, "stderr", stream := Tty())
    progress = Progress("receive")
    for _ in range(200):  # two seconds
        progress.advance("denoise")
    assert 15 <= stream.getvalue().count("receive:") <= 21


def test_a_remark_replaces_the_line_of_progress(monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := Tty())
    notice("remark")
    assert stream.getvalue() == "\r\x1b[Kremark\n"


def test_messages_name_extras_that_there_are():
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    extras = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    text = " ".join([*INSTALL.values(), remedy_for(FULL), remedy_for(RTX)])
    named = set(re.findall(r"jscc-edge\[([a-z-]+)\]", text))
    assert {"cuda", "export", "tensorrt-rtx"} <= named <= set(extras)
