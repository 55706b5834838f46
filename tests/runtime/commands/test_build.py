"""jscc build: engines for this device or ahead for others, against fakes of the library."""

import json

import numpy as np
import pytest

from fake_cuda import Status
from fake_tensorrt import WORDS, FakeTensorRt, install, make_device
from jscc.runtime.backends import tensorrt
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from jscc.runtime.backends.tensorrt import TensorRtBackend
from jscc.runtime.csi import Csi
from jscc.runtime.receiver import Receiver
from jscc.runtime.tensorrt import library as tensorrt_library


@pytest.fixture
def cuda(later_host):
    return make_device(later_host)


@pytest.fixture
def library(cuda, monkeypatch):
    """TensorRT for RTX."""
    fake = FakeTensorRt(cuda, "1.7.1.116", rtx=True)
    install(monkeypatch, fake, cuda)
    yield fake
    tensorrt_library.load_library.cache_clear()


@pytest.fixture
def full(cuda, monkeypatch):
    """TensorRT of a device."""
    fake = FakeTensorRt(cuda, "10.3.0")
    install(monkeypatch, fake, cuda)
    yield fake
    tensorrt_library.load_library.cache_clear()


@pytest.fixture
def out(tmp_path):
    return tmp_path / "engines"


def test_ahead_of_time_for_several_devices(jscc, library, cuda, codec, out):
    cuda.driver.status = Status.CUDA_ERROR_NO_DEVICE
    ran = jscc("build", codec, "--ahead", "sm_86,sm_89", "-o", out, "--json")
    assert ran.status == 0, ran.err
    rows = ran.json["engines"]
    assert [(row["stage"], row["target"]) for row in rows] == [
        ("decode", "sm_86"), ("decode", "sm_89"), ("encode", "sm_86"), ("encode", "sm_89"),
    ]  # fmt: skip
    assert [told["target"] for told in library.told] == ["SM86", "SM89"] * 2
    assert ran.json["library"] == "tensorrt_rtx 1.7.1.116"
    assert ran.json["precision"] == "fp32"
    for row in rows:
        assert (out / row["file"]).stat().st_size > row["size"] > 0
        assert row["parse_s"] >= 0
        assert row["build_s"] >= 0
        assert row["cpu_s"] >= 0
        assert row["profiles"][1]["height"] == [16, 32, 32]
    assert out.stat().st_mode & 0o777 == 0o700


def test_a_device_of_that_kind_uses_them(jscc, library, codec, shared_bundles, out):
    """The self-test's image and any from half a tile to a tile; nothing is built any more."""
    assert jscc("build", codec, "--ahead", "sm_89", "-o", out).status == 0
    count = len(library.told)
    receiver = Receiver(shared_bundles["codec"], backend=TensorRtBackend(folder=out))
    symbols = np.exp(1j * np.arange(96).reshape(2, 6, 8)).astype(np.complex64)
    _, record = receiver.receive(symbols, Csi(7.0), seed=0)
    assert record.providers == {"decode": "cuda"}
    assert len(library.told) == count


def test_one_engine_serves_a_range_of_sizes(jscc, library, codec, shared_bundles, out):
    options = ("--stage", "decode", "--shapes", "1x8x8-2x32x32", "-o", out)
    assert jscc("build", codec, "--ahead", "sm_89", *options).status == 0
    bundle = shared_bundles["codec"]
    given = ("decode", bundle.manifest.stages["decode"], bundle.graph("decode"), {})
    session, truth = (
        each.load(*given) for each in (TensorRtBackend(folder=out), OnnxRuntimeBackend(threads=1))
    )
    rng = np.random.default_rng(5)
    for batch, edge in ((1, 8), (2, 32), (1, 16)):
        arrays = {
            "received": rng.standard_normal((batch, 4, edge // 4, edge // 4), np.float32),
            "snr_db": rng.standard_normal(batch, np.float32),
        }
        expected, found = truth.run(arrays), session.run(arrays)
        assert np.allclose(found["reconstruction"], expected["reconstruction"], atol=1e-5)
    assert len(library.told) == 1


def test_what_is_there_is_not_built_again(jscc, library, codec, out):
    arguments = ("build", codec, "--ahead", "sm_89", "-o", out)
    jscc(*arguments)
    ran = jscc(*arguments, "--json")
    assert {row["build_s"] for row in ran.json["engines"]} == {None}
    assert len(library.told) == 2
    assert jscc(*arguments, "--force").status == 0
    assert len(library.told) == 4
    path = next(out.iterdir())
    path.write_bytes(path.read_bytes()[:-1])
    ran = jscc(*arguments)
    assert "jscc build: built again, since engine " in ran.err
    assert len(library.told) == 5


def test_missing_leaves_out_what_an_engine_there_takes(jscc, library, codec, out):
    """Wider ones count, damaged ones do not; where nothing may be built, that is said still."""
    common = ("build", codec, "--ahead", "sm_89", "--stage", "decode", "-o", out)
    assert jscc(*common, "--shapes", "1x8x8-2x32x32").status == 0
    (path,) = out.iterdir()
    ran = jscc(*common, "--missing", "--shapes", "16x24,2x32x32,8x16-24x24", "--json")
    assert (ran.status, ran.err, ran.json["engines"]) == (0, "", [])
    assert jscc(*common, "--missing", "--shapes", "16x24").status == 0
    assert len(library.told) == 1
    ran = jscc(*common, "--missing", "--shapes", "16x24,3x16x24,8x16-40x40", "--json")
    (row,) = ran.json["engines"]
    assert [(each["batch"], each["height"]) for each in row["profiles"]] == [
        ([3, 3, 3], [16, 16, 16]), ([1, 1, 1], [8, 40, 40]),
    ]  # fmt: skip
    assert len(library.told) == 2
    path.write_bytes(path.read_bytes()[:-1])
    ran = jscc(*common, "--missing", "--shapes", "2x16x24,16x24")
    assert "jscc build: built again unless others do, since engine " in ran.err
    assert library.told[2]["profiles"] == [{"received": [[2, 4, 4, 6]] * 3, "snr_db": [[2]] * 3}]
    bury(path)
    ran = jscc(*common, "--missing", "--shapes", "16x24")
    assert (ran.status, len(library.told)) == (65, 3)
    assert "[E_ENGINE_CRASH]" in ran.err
    assert jscc(*common, "--missing", "--force").status == 2


def test_on_a_device(jscc, full, codec, monkeypatch, tmp_path):
    """Without -o they go where receivers look; later builds profit from earlier ones."""
    monkeypatch.setattr(tensorrt.Path, "home", lambda: tmp_path)
    ran = jscc("build", codec, "--shapes", "16x24,2x8x8-4x32x32")
    assert ran.status == 0, ran.err
    assert "decode  sm_89 NVIDIA Fake  5 " in ran.out
    assert ran.out.endswith(f"in {tmp_path}/.cache/jscc/engines\n")
    assert [told["timings"] for told in full.told] == ["", "timed "]
    assert full.told[0]["profiles"][1]["received"] == [[2, 4, 2, 2], [4, 4, 8, 8], [4, 4, 8, 8]]
    assert full.told[0]["target"] is None


def test_one_stage_in_the_bundle_s_own_precision(jscc, library, codec, out):
    options = ("--ahead", "sm_120", "--stage", "decode", "--precision", "fp32", "-o", out)
    ran = jscc("build", codec, *options, "--json")
    assert [row["stage"] for row in ran.json["engines"]] == ["decode"]
    assert [told["tf32"] for told in library.told] == [False]


def test_where_engines_of_another_folder_belong_is_said(jscc, library, codec, out):
    ran = jscc("build", codec, "--ahead", "sm_89", "-o", out)
    assert ran.out.endswith(
        f"in {out}\nReceivers look for them in ~/.cache/jscc/engines of their user: copy them "
        "there on the device, into a folder of mode 0700.\n"
    )


def bury(engine):
    """Leave what stays of a process that crashed on an engine."""
    engine.with_name(f"{engine.name}.4711-0123-0.loading.ended").touch()


def test_after_a_crash_only_force_builds_again(jscc, library, codec, shared_bundles, out):
    """Until then the CPU receives; the engine that crashed goes even if it is for other sizes."""
    arguments = ("build", codec, "--ahead", "sm_89", "--stage", "decode", "-o", out)
    assert jscc(*arguments, "--shapes", "8x8").status == 0
    (crashed,) = out.iterdir()
    bury(crashed)
    ran = jscc(*arguments)
    assert ran.status == 65
    assert "got process 4711 ended by loading it, expected one that loads." in ran.err
    assert "[E_ENGINE_CRASH]" in ran.err
    assert len(library.told) == 1
    assert jscc(*arguments, "--force").status == 0
    (new,) = out.iterdir()
    assert new.name != crashed.name
    receiver = Receiver(shared_bundles["codec"], backend=TensorRtBackend(folder=out))
    symbols = np.exp(1j * np.arange(96).reshape(2, 6, 8)).astype(np.complex64)
    _, record = receiver.receive(symbols, Csi(7.0), seed=0)
    assert (record.providers, record.fallbacks) == ({"decode": "cuda"}, ())


def test_force_on_the_same_sizes_leaves_the_new_engine(jscc, library, codec, out):
    arguments = ("build", codec, "--ahead", "sm_89", "--stage", "decode", "-o", out)
    jscc(*arguments)
    (path,) = out.iterdir()
    bury(path)
    assert jscc(*arguments, "--force").status == 0
    assert list(out.iterdir()) == [path]
    assert jscc(*arguments).status == 0


def test_a_force_that_builds_nothing_forgives_nothing(jscc, library, codec, out):
    arguments = ("build", codec, "--ahead", "sm_89", "--stage", "decode", "-o", out)
    jscc(*arguments)
    (path,) = out.iterdir()
    bury(path)
    library.faults["build"] = [WORDS["compiler"]]
    assert jscc(*arguments, "--force").status == 69
    assert "E_ENGINE_CRASH" in jscc(*arguments).err


def test_progress_and_an_estimate_go_to_stderr(jscc, library, codec, out):
    ran = jscc("build", codec, "--ahead", "sm_89", "-o", out, "--json")
    lines = ran.err.splitlines()
    assert lines[0] == "jscc build: decode for sm_89, 1 of 2 …"
    assert lines[1].startswith("jscc build: decode for sm_89, 1 of 2: done in ")
    assert lines[2].startswith("jscc build: encode for sm_89, 2 of 2, about ")
    json.loads(ran.out)


def test_a_refused_node_is_one_line_and_the_rest_is_built(jscc, library, codec, out):
    library.refused = ("Sigmoid",)
    ran = jscc("build", codec, "--ahead", "sm_89", "-o", out, "--json")
    assert ran.status == 65
    (line,) = (line for line in ran.err.splitlines() if "E_GRAPH_LOAD" in line)
    assert line.startswith("jscc build: stage 'decode', node 0 (Sigmoid): got \"This version of ")
    decode, encode = ran.json["engines"]
    assert decode["error"] in line
    assert decode["file"] == ""
    assert encode["error"] is None
    assert "E_GRAPH_LOAD" in jscc("build", codec, "--ahead", "sm_89", "-o", out).out


@pytest.mark.parametrize(
    ("words", "code"), [("compiler", "E_ENGINE_BUILD"), ("memory", "E_MEMORY")]
)
def test_a_build_that_fails_is_69(jscc, library, codec, out, words, code):
    library.faults["build"] = [WORDS[words]]
    ran = jscc("build", codec, "--ahead", "sm_89", "-o", out)
    assert ran.status == 69
    assert f"[{code}]" in ran.err
    assert len(list(out.iterdir())) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--ahead", "sm_90"), "--ahead: got 'sm_90', expected some of sm_86, sm_89, sm_120, for"),
        (
            ("--ahead", "sm_89", "--precision", "fp16"),
            "--precision: got 'fp16' for a bundle of fp3",
        ),
        (
            ("--ahead", "sm_89", "--precision", "tf32"),
            "--precision: got 'tf32' for a bundle of fp32, expected fp32, since engines keep",
        ),
        (
            ("--ahead", "sm_89", "--shapes", "99999x99999"),
            "--shapes: got 99999x99999, expected at most ",
        ),
        (("--ahead", "sm_89", "--stage", "denoise"), "--stage: got 'denoise', expected some of "),
        (("--ahead", "sm_89", "--shapes", "big"), "--shapes: got 'big', expected "),
    ],
)
def test_what_cannot_be_asked_for(jscc, library, codec, out, options, words):
    ran = jscc("build", codec, *options, "-o", out)
    assert ran.status == 2
    assert ran.err.startswith(f"jscc build: {words}")
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        ("x86_64", "Run: pip install 'jscc-edge[tensorrt-rtx]'"),
        ("aarch64", "There is none for aarch64: build on the device, without --ahead"),
    ],
)
def test_no_library_is_one_line(jscc, monkeypatch, codec, out, kind, remedy):
    install(monkeypatch, None, None)
    monkeypatch.setattr(tensorrt_library.platform, "machine", lambda: kind)
    ran = jscc("build", codec, "--ahead", "sm_89", "-o", out)
    assert ran.status == 69
    assert ran.err == (
        "jscc build: module 'tensorrt_rtx': got nothing, expected it installed. "
        f"{remedy} [E_MODULE]\n"
    )
    tensorrt_library.load_library.cache_clear()


def test_no_device_is_one_line(jscc, library, cuda, codec, out):
    cuda.driver.status = Status.CUDA_ERROR_NO_DEVICE
    ran = jscc("build", codec, "-o", out)
    assert ran.status == 69
    assert ran.err.startswith("jscc build: cuInit: got CUDA_ERROR_NO_DEVICE, ")
    assert ran.err.count("\n") == 1


def test_a_folder_of_others_is_refused(jscc, library, codec, out):
    out.mkdir(mode=0o755)
    out.chmod(0o755)
    ran = jscc("build", codec, "--ahead", "sm_89", "-o", out)
    assert ran.status == 65
    assert "got mode 0755, expected 0700" in ran.err
    assert list(out.iterdir()) == []


def test_the_receiver_says_what_it_ran_on(jscc, full, cuda, codec, tmp_path, monkeypatch, photo):
    """And it stays on the device, although the command counts the stages' runs."""
    monkeypatch.setattr(tensorrt.Path, "home", lambda: tmp_path)
    ran = jscc("simulate", codec, photo, "--snr", 7, "--engine", "tensorrt", "--json")
    assert ran.status == 0, ran.err
    assert "stage 'decode': building an engine for batch 1, height 24, width 32 …" in ran.err
    (image,) = ran.json["images"]
    assert image["record"]["backend"] == "tensorrt 10.3.0"
    assert image["record"]["providers"] == {"decode": "cuda"}
    assert image["record"]["fallbacks"] == []
    assert "to_uint8" in {entry for entry, _, _ in cuda.driver.launches}


def test_without_a_device_the_cpu_receives_and_that_is_said(
    jscc, full, cuda, codec, tmp_path, monkeypatch, photo
):
    cuda.driver.status = Status.CUDA_ERROR_NO_DEVICE
    monkeypatch.setattr(tensorrt.Path, "home", lambda: tmp_path)
    ran = jscc("simulate", codec, photo, "--snr", 7, "--engine", "tensorrt", "--json")
    assert ran.status == 0, ran.err
    assert "the CPU takes TensorRT's place: cuInit: got CUDA_ERROR_NO_DEVICE, " in ran.err
    (image,) = ran.json["images"]
    assert image["record"]["providers"] == {"decode": "cpu"}
    assert image["record"]["backend"].startswith("onnxruntime ")


def checks(ran):
    return {check["name"]: check for check in ran.json["checks"]}


def test_doctor_names_library_targets_and_device(jscc, library):
    found = checks(jscc("doctor", "--json"))
    assert found["tensorrt"]["state"] == found["CUDA device"]["state"] == "ok"
    assert found["tensorrt"]["found"] == (
        "tensorrt_rtx 1.7.1.116, builds ahead for sm_86, sm_89, sm_120"
    )
    assert found["CUDA device"]["found"] == "NVIDIA Fake, sm_89"


def test_doctor_names_what_is_missing_and_the_command(jscc, monkeypatch):
    install(monkeypatch, None, None)
    monkeypatch.setattr("jscc.runtime.machine._NVIDIA", ("/",))
    ran = jscc("doctor", "--json")
    found = checks(ran)
    assert ran.status == 0
    assert found["tensorrt"]["state"] == found["CUDA device"]["state"] == "absent"
    assert "pip install 'jscc-edge[tensorrt]'" in found["tensorrt"]["remedy"]
    assert found["CUDA device"]["remedy"] == "pip install 'jscc-edge[cuda]'"
    tensorrt_library.load_library.cache_clear()


def test_doctor_says_why_a_library_does_not_load(jscc, monkeypatch):
    real = tensorrt_library.importlib.import_module

    def broken(name):
        if name == "tensorrt":
            raise ImportError("libnvinfer.so.10: cannot open shared object file")
        return real(name)

    install(monkeypatch, None, None)
    monkeypatch.setattr(tensorrt_library.importlib, "import_module", broken)
    check = checks(jscc("doctor", "--json"))["tensorrt"]
    assert check["state"] == "absent"
    assert "got ImportError 'libnvinfer.so.10: cannot open " in check["found"]
    tensorrt_library.load_library.cache_clear()


def test_doctor_says_that_the_driver_is_missing(jscc, library, cuda, monkeypatch):
    monkeypatch.setattr("jscc.runtime.machine._NVIDIA", ("/",))
    cuda.driver.status = Status.CUDA_ERROR_NO_DEVICE
    check = checks(jscc("doctor", "--json"))["CUDA device"]
    assert check["found"] == "cuInit: got CUDA_ERROR_NO_DEVICE"
    assert check["remedy"] == "Install NVIDIA's driver, or receive on the CPU."


def test_doctor_names_bindings_that_fit_the_driver(jscc, library, cuda, monkeypatch):
    monkeypatch.setattr("jscc.runtime.machine._NVIDIA", ("/",))
    cuda.driver.version = 12080
    check = checks(jscc("doctor", "--json"))["CUDA device"]
    assert check["found"].endswith("got 12080 from a driver for CUDA 12")
    assert check["remedy"] == "Run: pip install 'cuda-bindings==12.*'"


def test_doctor_without_an_nvidia_device_asks_for_nothing_of_it(jscc, monkeypatch):
    install(monkeypatch, None, None)
    monkeypatch.setattr("jscc.runtime.machine._NVIDIA", ())
    check = checks(jscc("doctor", "--json"))["CUDA device"]
    assert (check["found"], check["remedy"]) == ("no NVIDIA device", "")
    tensorrt_library.load_library.cache_clear()
