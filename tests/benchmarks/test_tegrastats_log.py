"""tegrastats log: figures that the program's own means confirm, and what is wrong with a log."""

import json
from statistics import fmean

import pytest

import tegrastats_lines as lines
from jscc.__main__ import main
from jscc.benchmarks.tegrastats_log import report, summarise
from jscc.runtime.errors import DataError


@pytest.fixture
def log(tmp_path):
    """Writes a log of these lines."""

    def write(*texts, end="\n"):
        path = tmp_path / "power.log"
        path.write_text("\n".join(texts) + end)
        return path

    return write


def at(second, line=lines.ORIN_NX):
    """The line, printed at another second of that hour."""
    return line.replace("18:30:28", f"18:{30 + second // 60:02}:{second % 60:02}")


def test_means_are_those_that_the_program_printed_itself(log):
    """Its second number is the mean of all lines so far, in whole milliwatts."""
    found = summarise(log(*lines.AGX_ORIN_THREE), 1000)
    means = {name: rail["watts"] for name, rail in found["rails"].items()}
    printed = {"VDD_GPU_SOC": 2.412, "VDD_CPU_CV": 1.607, "VIN_SYS_5V0": 4.674}
    assert means == pytest.approx(printed, abs=0.0005)
    assert found["interval_s"] == 1
    assert found["seconds"] == 3
    assert found["module"]["watts"] == pytest.approx(sum(printed.values()), abs=0.0015)
    assert found["module"]["joules"] == pytest.approx(3 * found["module"]["watts"])
    assert found["rails"]["VIN_SYS_5V0"]["most"] == 4.707
    assert found["ram_mib"] == {"most": 18207, "total": 62841}
    assert found["mhz"]["CPU"] == {
        "least": 2050,
        "mean": pytest.approx(fmean((2201, 2201, 2050))),
        "most": 2201,
    }
    assert found["celsius"]["cpu"] == 52.562


def test_a_rail_that_is_a_part_is_not_counted_twice(log):
    module = summarise(log(lines.XAVIER_NX, lines.XAVIER_NX))["module"]
    assert module == {"rails": ["VDD_IN"], "watts": 4.067, "joules": pytest.approx(2 * 4.067)}


def test_without_dates_the_interval_is_the_usual_one_or_what_is_said(log):
    path = log(*[lines.NANO] * 10)
    assert summarise(path)["module"]["joules"] == pytest.approx(10 * 1.022)
    assert summarise(path)["interval_from"].startswith("tegrastats' own")
    assert summarise(path, 100)["module"]["joules"] == pytest.approx(10 * 0.1 * 1.022)


@pytest.mark.parametrize(
    ("seconds", "interval_s"),
    [
        ([number // 5 for number in range(101)], 0.2),
        ([0, 5, 10, 15, 20], 5),
        (range(58, 79), 1),  # over the minute
        ([0, 1, *range(3, 25)], 24 / 23),
    ],
)
def test_the_interval_is_read_off_the_dates(log, seconds, interval_s):
    found = summarise(log(*map(at, seconds)))
    assert found["interval_s"] == pytest.approx(interval_s)
    assert found["module"]["joules"] == pytest.approx(17.946 * interval_s * len(seconds))


@pytest.mark.parametrize(
    ("seconds", "got"),
    [
        ([0, 1, 2, 60, 61], "58 s before line 4, expected about 1 s"),
        ([0, 1, 2, 1, 2], "-1 s before line 4, expected about 1 s"),
        ([7, 7, 7], "3 lines in 0 s, give or take 1 s, expected 20 s or more"),
        ([*range(19), 19], "20 lines in 19 s, give or take 1 s, expected 20 s or more"),
    ],
)
def test_dates_that_tell_no_interval_are_refused(log, seconds, got):
    path = log(*map(at, seconds))
    with pytest.raises(DataError, match=f"^power.log: got {got}.* Say --interval MS") as caught:
        summarise(path)
    assert caught.value.code == "E_TEGRASTATS_INTERVAL"
    assert summarise(path, 500)["seconds"] == len(seconds) / 2


@pytest.mark.parametrize(("count", "interval_s"), [(12, 0.1), (2, 0.1), (5, 4.7)])
def test_a_log_too_short_for_whole_seconds_wants_its_interval(log, count, interval_s):
    """Its dates would say up to a second more: 20 J where 10 W for 0.2 s are 2 J."""
    line = lines.ORIN_NX.replace("17946mW", "10000mW")
    path = log(*(at(int(0.95 + number * interval_s), line) for number in range(count)))
    with pytest.raises(DataError, match=f"got {count} lines in .* expected 20 s or more"):
        summarise(path)
    found = summarise(path, interval_s * 1e3)
    assert found["module"]["joules"] == pytest.approx(10 * count * interval_s)
    assert found["uncertainty"] == 0


@pytest.mark.parametrize("phase", [0.0, 0.05, 0.5, 0.95])
@pytest.mark.parametrize("interval_s", [0.1, 0.7, 1.0, 4.7])
def test_the_energy_by_dates_is_as_near_as_it_says(log, phase, interval_s):
    count = 2 + int(25 / interval_s)
    path = log(*(at(int(phase + number * interval_s)) for number in range(count)))
    found = summarise(path)
    true = 17.946 * count * interval_s
    assert found["module"]["joules"] == pytest.approx(true, rel=found["uncertainty"])
    assert 0 < found["uncertainty"] <= 0.05
    share = f"{found['uncertainty']:.1%}"
    assert f" J ± {share}, 17.9 W" in report(found)
    assert f" s ± {share}\n" in report(found)


OTHER = lines.ORIN_NX.replace("VDD_SOC", "VDD_OTHER")
CUT = lines.ORIN_NX[: lines.ORIN_NX.index("RAM")]


@pytest.mark.parametrize("bad", [OTHER, CUT, "\x00\x00 VDD_SOC 1mW/1mW"])
def test_a_line_that_is_left_out_still_took_its_time(log, bad):
    """100 lines of 1 s at 17.946 W, of which 10 are damaged, are as many joules either way."""
    texts = [at(second, bad if second % 10 == 5 else lines.ORIN_NX) for second in range(100)]
    path = log("nohup: ignoring input", *texts)
    given, dated = summarise(path, 1000), summarise(path)
    assert given["skipped"] == {"count": 11, "first": [1, 7, 17, 27, 37]}
    assert given["seconds"] == 100
    assert given["module"]["joules"] == pytest.approx(1794.6)
    assert dated["module"]["joules"] == pytest.approx(1794.6, rel=0.002)


def test_a_line_of_another_program_took_no_time(log):
    texts = [text for second in range(30) for text in (at(second), "step 1 of 9")]
    assert summarise(log(*texts), 1000)["seconds"] == 30
    undated = [text for _ in range(30) for text in (lines.NANO, "step 1 of 9")]
    assert summarise(log(*undated))["seconds"] == 30


def test_bad_lines_are_counted_and_told(log):
    other = lines.ORIN_NX.replace("VDD_SOC", "VDD_OTHER")
    cut = at(3)[: at(3).index("VDD_CPU_GPU_CV")]
    path = log("nohup: ignoring input", at(0), "", at(1), other, at(2), cut, end="")
    found = summarise(path, 1000)
    assert found["lines"] == 3
    assert found["skipped"] == {"count": 4, "first": [1, 3, 5, 7]}
    assert "left out  4 of 7 lines: 1, 3, 5, 7\n" in report(found)
    many = log(*["x"] * 7, lines.NANO)
    assert "left out  7 of 8 lines: 1, 2, 3, 4, 5…\n" in report(summarise(many))


def test_a_line_without_an_end_stays_one_line(log):
    path = log("x" * 100_000, at(0), at(20))
    assert summarise(path)["skipped"] == {"count": 1, "first": [1]}


def test_a_log_with_no_line_of_it_is_one_error(log, tmp_path):
    with pytest.raises(
        DataError, match="^power.log: got 2 lines without 'RAM 0/0MB', expected l"
    ) as e:
        summarise(log("a", "b"))
    assert e.value.code == "E_TEGRASTATS_LINES"
    assert "tegrastats --interval 1000 --logfile LOG" in str(e.value)
    (tmp_path / "empty").touch()
    with pytest.raises(DataError, match="^empty: got 0 lines "):
        summarise(tmp_path / "empty")


def test_what_is_no_file_is_not_opened(log, tmp_path):
    with pytest.raises(DataError, match="expected a regular file") as caught:
        summarise(tmp_path / "nothing.log")
    assert caught.value.code == "E_TEGRASTATS_MISSING"
    (tmp_path / "link.log").symlink_to(log(lines.NANO))
    with pytest.raises(DataError, match="got a link") as caught:
        summarise(tmp_path / "link.log")
    assert caught.value.code == "E_TEGRASTATS_FILETYPE"


def test_a_log_without_rails_says_so_and_has_the_rest(log):
    found = summarise(log(lines.TX1_OLD, lines.TX1_OLD))
    assert (found["module"], found["rails"]) == (None, {})
    text = report(found)
    assert "energy: no line names a rail; run tegrastats on the board itself, as root" in text
    assert "hottest   no sensor" in text
    assert "3607 of 3983 MiB at most" in text


def test_the_command_prints_and_writes_the_figures(log, tmp_path, capsys):
    path, out = log(*lines.AGX_ORIN_THREE), tmp_path / "power.json"
    command = ["bench", "tegrastats", str(path), "--json", str(out)]
    assert main([*command, "--interval", "1000"]) == 0
    printed = capsys.readouterr().out
    assert "hottest   cpu, 52.562 °C" in printed
    assert (
        "energy: 26.08 J, 8.69 W (VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0, whoever used it)"
    ) in printed
    assert "VDD_GPU_SOC  2.412   2.412   7.2" in printed
    stored = json.loads(out.read_text())
    assert stored["kind"] == "tegrastats"
    assert stored["module"]["joules"] == pytest.approx(26.08, abs=0.005)
    assert main(command) == 73
    assert main(["bench", "tegrastats", str(path), "--interval", "0"]) == 2
