"""Fake build: ``jscc`` in a process of its own with a fake TensorRT, and what may go wrong there.

Run as a script, it takes a gate and the arguments of ``jscc``; in the middle of a build it waits
until the gate, a named pipe, is opened for writing.
"""

import os
import sys
import threading

# What a process does instead of a build: for as long as its stdin is open, or until it goes wrong.
READY = "import os, signal, sys; print('jscc build: so far', file=sys.stderr, flush=True)\n"
WAITS = READY + "os.read(0, 1)\n"
STUBBORN = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + READY + (
    "while True: signal.pause()\n"
)  # fmt: skip
SUCCEEDS = READY
ERROR = "stage 'decode': got no tactic, expected fake 1 to build it. Update it. [E_ENGINE_BUILD]"
REFUSES = READY + f"print('''jscc build: {ERROR}''', file=sys.stderr)\n" + (
    "print('jscc build: render for sm_89, 2 of 2: done', file=sys.stderr)\nsys.exit(69)\n"
)  # fmt: skip
BREAKS = READY + "sys.exit(3)\n"
CRASHES = READY + "os.kill(os.getpid(), signal.SIGKILL)\n"


def instead(script):
    """The command of a process that runs `script`."""
    return (sys.executable, "-c", script)


class Gate:
    """What keeps builds of `command_line` from going on until it is opened."""

    def __init__(self, path):
        self.path = path
        os.mkfifo(path)

    def command_line(self, arguments):
        """Stands for `jscc.runtime.child.command_line`."""
        return (sys.executable, __file__, self.path, *arguments)

    def open(self):
        """Let it go on, whenever it comes here."""
        self.descriptor = os.open(self.path, os.O_RDWR)
        os.write(self.descriptor, b"x" * 99)  # a byte for each build


class Said:
    """Lines that were told, which a test may wait for."""

    def __init__(self):
        self.lines = []
        self.changed = threading.Condition()

    def __call__(self, text):
        with self.changed:
            self.lines.append(text)
            self.changed.notify_all()

    def wait_for(self, words):
        """Wait until a line has these words."""
        with self.changed:
            assert self.changed.wait_for(lambda: any(words in line for line in self.lines), 120)


def is_gone(pid):
    """Whether a process is no more, not even as a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def main():
    """Run ``jscc``."""
    from fake_tensorrt import FakeTensorRt, make_device
    from jscc.__main__ import main as jscc
    from jscc.runtime.child import end_with_parent

    cuda = make_device()
    library = FakeTensorRt(cuda)
    sys.modules.update({"tensorrt": library, "tensorrt_rtx": None})
    sys.modules.update({"cuda.bindings.driver": cuda.driver, "cuda.bindings.nvrtc": cuda.nvrtc})
    gate, *arguments = sys.argv[1:]

    def wait():
        with open(gate, "rb", buffering=0) as opened:
            opened.read(1)

    library.building = wait
    end_with_parent()
    return jscc(arguments)


if __name__ == "__main__":
    sys.exit(main())
