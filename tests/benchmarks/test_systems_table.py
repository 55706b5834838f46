"""The table of all systems: every cbr, every SNR, what it costs, what was lost."""

import pytest

import recorded
from jscc.benchmarks import cli
from jscc.runtime.errors import UsageError


@pytest.fixture
def paths(tmp_path):
    return [str(p) for p in recorded.write(tmp_path, a=recorded.systems(), b=recorded.baseline())]


def table(capsys, *words) -> list[list[str]]:
    assert cli.main(["systems", *words]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_series_has_a_line_at_every_cbr(paths, capsys):
    header, _, *rows = table(capsys, *paths, "--snr", "1,4,7")
    assert header == [
        *("system (PSNR, dB / LPIPS)", "cbr", "parameters, M", "s per image"),
        *("1 dB", "4 dB", "7 dB"),
    ]
    assert [row[:2] for row in rows] == [
        *(["sing", "1/48"], ["sing, codec alone", "1/48"], ["HEVC + LDPC", "1/48"]),
        *(["af", "1/96"], ["sing", "1/96"], ["sing, codec alone", "1/96"], ["HEVC + LDPC", "1/96"]),
    ]
    assert rows[4][2:] == ["2.50", "1.50", "21.00 / 0.5000", "–", "23.00 / 0.4000"]
    assert rows[6][2:] == [
        *("–", "–", "lost", "18.00 / 0.8000 (25 % arrived)", "25.00 / 0.4500"),
    ]


def test_metrics_and_cbrs_are_chosen(paths, capsys):
    _, _, *rows = table(
        capsys, *paths, "--cbr", "1/48", "--metric", "psnr_db", "--snr", "7", "--label", "sing=SING"
    )
    assert rows == [
        ["SING", "1/48", "2.50", "1.50", "25.00"],
        ["sing, codec alone", "1/48", "–", "–", "26.00"],
        ["HEVC + LDPC", "1/48", "–", "–", "28.00"],
    ]


def test_a_table_of_nothing_is_refused(paths):
    with pytest.raises(UsageError, match=r"table: got nothing at cbr 1/7 and SNR 1,4,7,10,13 dB"):
        cli.main(["systems", *paths, "--cbr", "1/7"])
