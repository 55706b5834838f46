"""Child: a process that is gone when nobody needs it, however that comes."""

import os
import select
import signal
import subprocess
import sys
import threading

import pytest

from fake_build import STUBBORN, WAITS, Said, instead, is_gone
from jscc.runtime import child as module
from jscc.runtime.child import Child, command_line, describe_end

# Makes a child that holds a named pipe open, and ends as the last line says.
PARENT = """
import os, signal, sys, threading
from jscc.runtime.child import Child
script = '''
from jscc.runtime.child import end_with_parent
end_with_parent()
import signal, sys
pipe = open(sys.argv[1], "wb", buffering=0)
pipe.write(b"x")
while True: signal.pause()
'''
child = Child((sys.executable, "-c", script, sys.argv[1]))
"""


def test_lines_and_status_are_passed_on():
    said = []
    script = "import sys; print('a\\n\\n\\x1bb', file=sys.stderr); print('c'); sys.exit(3)"
    with Child(instead(script)) as child:
        assert child.follow(said.append) == 3
    assert said == ["a", "\\x1bb"]
    assert is_gone(child.pid)


def test_a_line_without_end_comes_in_parts():
    said = []
    with Child(instead("import sys; sys.stderr.write('x' * 100_000)")) as child:
        child.follow(said.append)
    assert sum(line.count("x") for line in said) >= 50_000
    assert max(map(len, said)) <= 4001


@pytest.mark.parametrize(
    ("status", "words"),
    [(69, "status 69"), (-9, "signal SIGKILL"), (-11, "signal SIGSEGV"), (-63, "signal 63")],
)
def test_an_end_in_words(status, words):
    assert describe_end(status) == words


@pytest.mark.parametrize(("script", "status"), [(WAITS, -15), (STUBBORN, -9)])
def test_another_thread_ends_it(monkeypatch, script, status):
    """One that does not heed it is killed."""
    if script is STUBBORN:
        monkeypatch.setattr(module, "GRACE_S", 0.1)
    said, statuses = Said(), []
    with Child(instead(script)) as child:
        thread = threading.Thread(target=lambda: statuses.append(child.follow(said)))
        thread.start()
        said.wait_for("so far")
        child.end()
        assert is_gone(child.pid)
        thread.join()
    assert statuses == [status]


def test_the_context_ends_it():
    with Child(instead(WAITS)) as child:
        assert not is_gone(child.pid)
    assert is_gone(child.pid)


def test_its_priority_is_lower():
    with Child(instead(WAITS)) as child:
        own = os.getpriority(os.PRIO_PROCESS, 0)
        assert os.getpriority(os.PRIO_PROCESS, child.pid) == min(19, own + module.NICER)


def test_it_is_not_in_the_group_that_a_terminal_interrupts():
    with Child(instead(WAITS)) as child:
        assert os.getpgid(child.pid) != os.getpgid(0)


def test_a_program_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        Child((str(tmp_path / "none"),))


def test_it_is_this_jscc_wherever_we_are(tmp_path, monkeypatch):
    """The working folder may hold modules of anybody's."""
    for name in ("jscc", "numpy", "argparse", "threading"):
        tmp_path.joinpath(f"{name}.py").write_text("raise SystemExit(99)")
    monkeypatch.chdir(tmp_path)
    said = []
    with Child(command_line(("none",))) as child:
        assert child.follow(said.append) == 2
    (line,) = said
    assert line.startswith("jscc: command: got 'none', expected inspect, ")


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(0)"])
def test_it_ends_with_a_parent_that_could_not_end_it(tmp_path, end):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    # The parent goes when the child is there, which the pipe tells.
    wait = "sys.stdin.read(1)\n"
    with subprocess.Popen(
        [sys.executable, "-c", PARENT + wait + end, pipe], stdin=subprocess.PIPE
    ) as parent:
        assert select.select([reader], [], [], 120)[0]
        assert os.read(reader, 1) == b"x"
        parent.stdin.write(b"x")
        parent.stdin.close()
        assert parent.wait(120) in (0, -signal.SIGKILL)
    assert select.select([reader], [], [], 120)[0]  # nobody holds the other end any more
    assert os.read(reader, 1) == b""
    os.close(reader)
