"""Runs inside an environment that holds the device's dependencies only; prints JSON findings.

Not a test itself: test_device_environment.py starts it there.
"""

import importlib
import importlib.util
import json
import pkgutil
import sys
import time
from pathlib import Path


def pth_lines(site: Path) -> list[str]:
    """The folders that the environment adds to its own."""
    return [line for file in site.glob("*.pth") for line in file.read_text().splitlines()]


def counts(file: Path) -> bool:
    """Whether `file` is something that was installed, not made by running it."""
    return file.suffix != ".pyc" and file.is_file()


def main() -> None:
    """Import all that the device may import, one module after the other."""
    started = time.perf_counter()
    importlib.import_module("jscc.runtime.receiver")
    import_ms = (time.perf_counter() - started) * 1e3
    names = []
    for package in ("jscc.runtime", "jscc.kernels"):
        root = importlib.import_module(package)
        for module in pkgutil.walk_packages(root.__path__, f"{package}."):
            importlib.import_module(module.name)
            names.append(module.name)
    folders = [Path(path) for path in sys.path if path.endswith("site-packages")]
    folders += [Path(line) for site in folders for line in pth_lines(site)]
    size = sum(file.stat().st_size for each in folders for file in each.rglob("*") if counts(file))
    findings = {
        "python": sys.version.split()[0],
        "modules": names,
        "import_ms": round(import_ms),
        "installed_mib": round(size / 2**20),
        "foreign": [name for name in sys.argv[1:] if importlib.util.find_spec(name) is not None],
        "origin": importlib.import_module("jscc").__file__,
    }
    sys.stdout.write(json.dumps(findings))


if __name__ == "__main__":
    main()
