"""Report: a result says which commit it was measured at, and is strict JSON."""

import json
import subprocess

import pytest

from jetson_root import NANO, ORIN_NANO, make_root
from jscc.benchmarks import report
from jscc.benchmarks.report import (
    board,
    commit,
    instructions,
    markdown_table,
    provenance,
    write_result,
)
from jscc.runtime import jetson


@pytest.fixture
def git(tmp_path, monkeypatch):
    """Runs git in a folder where the module seems to lie."""

    def run(*arguments):
        identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "report.py").write_text("1")
    monkeypatch.setattr(report, "__file__", str(tmp_path / "report.py"))
    return run


def test_the_commit_is_that_of_the_checkout(git, tmp_path):
    assert commit() is None
    git("init", "-q")
    assert commit() is None  # nothing is committed yet
    git("add", "report.py")
    git("commit", "-q", "-m", "a")
    assert commit() == git("rev-parse", "HEAD")
    (tmp_path / "report.py").write_text("2")
    assert commit() == git("rev-parse", "HEAD") + "+"


def test_an_installed_copy_in_a_foreign_checkout_has_no_commit(git, tmp_path):
    (tmp_path / "other").write_text("1")
    git("init", "-q")
    git("add", "other")
    git("commit", "-q", "-m", "a")
    assert commit() is None


def test_provenance_names_no_person_host_or_folder():
    found = provenance()
    assert set(found) == {"machine", "versions", "commit"}
    assert "/" not in json.dumps(found["versions"])
    assert "available_mib" not in found["machine"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            ORIN_NANO,
            ", NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super, "
            "Jetson Linux 36.4.4, power mode MAXN_SUPER, clocks not pinned",
        ),
        (
            NANO,
            ", NVIDIA Jetson Nano Developer Kit, Jetson Linux 32.7.1, power mode 10W, "
            "clocks pinned",
        ),
        (
            {"proc/sys/kernel/osrelease": "5.15.148-tegra"},
            ", power mode unknown, clocks unknown",
        ),
    ],
)
def test_a_result_has_a_jetson_s_settings(tmp_path, monkeypatch, files, words):
    monkeypatch.setattr(jetson, "ROOT", make_root(tmp_path / "board", files))
    write_result(tmp_path / "a.json", "latency", provenance())
    stored = json.loads((tmp_path / "a.json").read_text())["machine"]
    assert board(stored) == words


def test_a_result_has_the_clocks_themselves(tmp_path, monkeypatch):
    monkeypatch.setattr(jetson, "ROOT", make_root(tmp_path, ORIN_NANO))
    clocks = json.loads(json.dumps(provenance()))["machine"]["jetson"]["clocks_mhz"]
    assert clocks["cpu0"] == [729.6, 1728.0]


def test_results_of_other_machines_have_no_board():
    stored = provenance()["machine"]
    assert "jetson" not in stored
    assert board(stored) == ""


def test_a_result_says_its_kind_and_refuses_nan(tmp_path):
    write_result(tmp_path / "a.json", "latency", {"value": 1.5})
    stored = json.loads((tmp_path / "a.json").read_text())
    assert stored == {"kind": "latency", "format": 1, "value": 1.5}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_result(tmp_path / "a.json", "latency", {"value": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == stored


def test_a_table_aligns_figures_right():
    assert markdown_table(("what", "ms"), [("a", "1")]) == (
        "| what | ms |\n| --- | --: |\n| a | 1 |\n"
    )


def test_a_cell_stays_a_cell():
    assert markdown_table(("a|b",), [("c\nd",)]) == "| a\\|b |\n| --- |\n| c d |\n"


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (["avx", "avx2", "fma"], " (avx2)"),
        (["avx", "avx2", "fma", "avx512f"], " (avx512f)"),
        (["avx2", "avx512f", "avx512_vnni", "avx512_bf16"], " (avx512_vnni, avx512_bf16)"),
        (["asimd", "asimdhp", "asimddp"], " (asimddp)"),
        (["avx"], ""),
        ([], ""),
    ],
)
def test_processors_of_one_name_are_told_apart(features, said):
    assert instructions({"cpu": "A CPU", "features": features}) == said
    assert instructions({"cpu": "A CPU"}) == ""
