"""PTX on this host: what its documentation says of instructions that C++ says otherwise."""

import ctypes
import shutil
import subprocess

import pytest

from host_kernels import FLAGS
from ptx_on_host import FLAGS as MORE
from ptx_on_host import translate

ENTRY = """
.visible .entry probe(
	.param .u64 probe_param_0,
	.param .f32 probe_param_1,
	.param .f32 probe_param_2,
	.param .u64 probe_param_3
)
.maxntid 256, 1, 1
{{
	.reg .pred 	%p<3>;
	.reg .f32 	%f<5>;
	.reg .b32 	%r<5>;
	.reg .b64 	%rd<9>;

	ld.param.u64 	%rd1, [probe_param_0];
	ld.param.f32 	%f1, [probe_param_1];
	ld.param.f32 	%f2, [probe_param_2];
	ld.param.u64 	%rd2, [probe_param_3];
	cvta.to.global.u64 	%rd3, %rd1;
	{}
	bra.uni 	$L__BB0_2;
	mov.u64 	%rd4, 77;
$L__BB0_2:
	st.global.u64 	[%rd3+8], %rd4;
	ret;
}}
"""
NAN, BIG = float("nan"), 2**64 - 3


@pytest.fixture
def probe(tmp_path):
    """A function of two floats and an integer, by the instructions that set %rd4."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not on this machine")

    def run(instructions, first=0.0, second=0.0, number=0):
        source, built = tmp_path / "probe.cpp", tmp_path / f"{abs(hash(instructions))}.so"
        source.write_text(translate(ENTRY.format(instructions)))
        subprocess.run(["g++", *FLAGS, *MORE, "-o", built, source], check=True)
        memory = (ctypes.c_uint64 * 2)()
        function = ctypes.CDLL(str(built)).probe
        function.argtypes = [ctypes.c_void_p, ctypes.c_float, ctypes.c_float, ctypes.c_uint64]
        function(ctypes.addressof(memory), first, second, number)
        return memory[1]

    return run


@pytest.mark.parametrize(
    ("how", "left", "right", "expected"),
    [
        ("ne", NAN, 1.0, 0),
        ("neu", NAN, 1.0, 1),
        ("ltu", NAN, 1.0, 1),
        ("lt", NAN, 1.0, 0),
        ("geu", 1.0, 2.0, 0),
        ("ne", 1.0, 2.0, 1),
    ],
)
def test_comparisons_with_nan(probe, how, left, right, expected):
    text = f"setp.{how}.f32 	%p1, %f1, %f2;\n	selp.b64 	%rd4, 1, 0, %p1;"
    assert probe(text, left, right) == expected


def test_integers_wrap_and_have_a_high_half(probe):
    assert probe("mul.hi.u64 	%rd4, %rd2, %rd2;", number=BIG) == BIG * BIG >> 64
    assert probe("mul.lo.s64 	%rd4, %rd2, %rd2;", number=BIG) == BIG * BIG % 2**64
    assert probe("add.s64 	%rd4, %rd2, 5;", number=BIG) == 2
    assert probe("shr.u64 	%rd4, %rd2, 12;", number=BIG) == BIG >> 12


def test_predicates_guard_and_constants_are_bits(probe):
    text = (
        "setp.gt.f32 	%p1, %f1, 0f3F800000;\n"
        "	mov.u64 	%rd4, 5;\n"
        "	@!%p1 mov.u64 	%rd4, 6;"
    )
    assert (probe(text, 1.5), probe(text, 1.0)) == (5, 6)
    assert probe("mov.f32 	%f3, 0f40490FDB;\n	cvt.rzi.u64.f32 	%rd4, %f3;") == 3


@pytest.mark.parametrize(
    "text",
    [
        "fma.rn.f32 	%f3, %f1, %f2, %f1;",
        "mul.f32 	%f3, %f1, %f2;",
        "div.approx.f32 	%f3, %f1, %f2;",
        "sqrt.approx.f32 	%f3, %f1;",
        "add.rz.f32 	%f3, %f1, %f2;",
        "bfe.u64 	%rd4, %rd2, 1, 2;",
    ],
)
def test_what_rounds_otherwise_or_is_unknown_is_refused(text):
    with pytest.raises(LookupError, match=f"instruction .{text[:7]}.* is not known here"):
        translate(ENTRY.format(text))
