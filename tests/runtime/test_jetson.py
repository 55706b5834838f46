"""Jetson: what folders with the files of such boards are taken for."""

import pytest

from jetson_root import CUDA, NANO, ORIN_NANO, RELEASE_36, make_root
from jscc.runtime import jetson
from jscc.runtime.jetson import cuda_bindings, describe_jetson
from jscc.runtime.machine import describe_machine

STATUS, CONF = "var/lib/nvpmodel/status", "etc/nvpmodel.conf"
JETPACK_5 = {
    "etc/nv_tegra_release": RELEASE_36.replace(
        "R36 (release), REVISION: 4.4", "R35 (release), REVISION: 4.1"
    )
}
LOWEST, HIGHEST = "scaling_min_freq", "scaling_max_freq"
POLICY = "sys/devices/system/cpu/cpufreq/policy0/"


def test_an_orin_with_jetpack_6(tmp_path):
    found = describe_jetson(make_root(tmp_path, ORIN_NANO))
    assert found == jetson.Jetson(
        model="NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        l4t="36.4.4",
        jetpack=6,
        cuda="12.6",
        power_mode="MAXN_SUPER",
        clocks_mhz={
            "cpu0": (729.6, 1728.0),
            "cpu4": (729.6, 1728.0),
            "17000000.gpu": (306.0, 1020.0),
        },
        clocks_pinned=False,
    )


def test_a_nano_with_jetpack_4_and_pinned_clocks(tmp_path):
    found = describe_jetson(make_root(tmp_path, NANO))
    assert (found.l4t, found.jetpack, found.cuda, found.power_mode) == ("32.7.1", 4, None, "10W")
    assert found.clocks_mhz == {"cpu0": (1479.0, 1479.0), "57000000.gpu": (921.6, 921.6)}
    assert found.clocks_pinned is True


def test_one_clock_that_is_free_is_enough_not_to_be_pinned(tmp_path):
    freed = {**NANO, "sys/class/devfreq/57000000.gpu/min_freq": "76800000\n"}
    assert describe_jetson(make_root(tmp_path, freed)).clocks_pinned is False


@pytest.mark.parametrize(
    ("folder", "is_gpu"),
    [("17000000.ga10b", True), ("17000000.gv11b", True), ("gpu-gpc-0", True), ("gpu-nvd-0", False)],
)
def test_the_gpu_has_other_names_on_other_boards(tmp_path, folder, is_gpu):
    at = f"sys/class/devfreq/{folder}"
    files = {"etc/nv_tegra_release": "x", f"{at}/min_freq": "315", f"{at}/max_freq": "1575000000"}
    assert (folder in describe_jetson(make_root(tmp_path, files)).clocks_mhz) is is_gpu


def test_in_a_container_the_kernel_tells(tmp_path):
    """Docker hides the device tree, and the rest is the host's."""
    kernel = {"proc/sys/kernel/osrelease": "5.15.148-tegra\n"}
    found = describe_jetson(make_root(tmp_path, kernel))
    assert found == jetson.Jetson(None, None, None, None, None, {}, None)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"proc/sys/kernel/osrelease": "6.1.0-18-amd64\n"},
        {"proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0"},
    ],
)
def test_other_machines_are_none(tmp_path, files):
    assert describe_jetson(make_root(tmp_path, files)) is None


@pytest.mark.parametrize(
    ("status", "conf", "mode"),
    [
        ("pmode:0000", ORIN_NANO[CONF], "15W"),
        ("pmode:0010", "< POWER_MODEL ID=0 NAME=A >\n< POWER_MODEL ID=10 NAME=B >", "B"),
        ("pmode:0007", ORIN_NANO[CONF], "mode 7"),
        ("pmode:0000", "", "mode 0"),
        ("", ORIN_NANO[CONF], None),
        ("something", ORIN_NANO[CONF], None),
    ],
)
def test_the_mode_is_a_number_that_the_configuration_names(tmp_path, status, conf, mode):
    root = make_root(tmp_path, {**ORIN_NANO, STATUS: status, CONF: conf})
    assert describe_jetson(root).power_mode == mode


@pytest.mark.parametrize("text", ["<unknown>\n", "", "-1", "²"])
def test_a_clock_that_cannot_be_read_is_left_out(tmp_path, text):
    root = make_root(tmp_path, {**NANO, POLICY + LOWEST: text})
    assert set(describe_jetson(root).clocks_mhz) == {"57000000.gpu"}


def test_an_unknown_release_has_no_jetpack(tmp_path):
    later = ORIN_NANO["etc/nv_tegra_release"].replace("R36", "R99")
    found = describe_jetson(make_root(tmp_path, {**ORIN_NANO, "etc/nv_tegra_release": later}))
    assert (found.l4t, found.jetpack) == ("99.4.4", None)
    strange = {**ORIN_NANO, "etc/nv_tegra_release": "# a Yocto image\n"}
    assert describe_jetson(make_root(tmp_path, strange)).l4t is None


@pytest.mark.parametrize(
    ("files", "release"),
    [
        (ORIN_NANO, 12.6),
        ({**ORIN_NANO, "usr/local/cuda/version.json": "{}"}, 12.6),
        ({**ORIN_NANO, "usr/local/cuda/version.json": CUDA.replace("12.6", "13.0")}, 13.0),
        ({**ORIN_NANO, "usr/local/cuda/version.json": CUDA.replace("12.6", "12.2")}, 12.6),
        ({**JETPACK_5, "usr/local/cuda/version.json": CUDA.replace("12.6", "11.4")}, 11.8),
        (JETPACK_5, 11.8),
        (NANO, None),
        ({}, None),
    ],
)
def test_bindings_fit_the_board_s_cuda(tmp_path, monkeypatch, files, release):
    """PyPI has wheels of these for aarch64 and Python 3.10, with ``cuda.bindings`` in them."""
    monkeypatch.setattr(jetson, "ROOT", make_root(tmp_path, files))
    assert cuda_bindings() == (release and f"'cuda-python=={release}.*'")


def test_the_machine_has_its_board(tmp_path, monkeypatch):
    monkeypatch.setattr(jetson, "ROOT", make_root(tmp_path, ORIN_NANO))
    assert describe_machine().jetson == describe_jetson(tmp_path)
    monkeypatch.setattr(jetson, "ROOT", tmp_path / "nothing")
    assert describe_machine().jetson is None
