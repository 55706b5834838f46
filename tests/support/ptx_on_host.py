"""PTX as C++: what a device's compiler makes of a kernel, instruction by instruction, on this host.

Each PTX instruction becomes one C++ statement and each register a variable, so the device's own
code, with its intrinsics, runs where there is no device. What is left out is ptxas and the machine.
PTX is NVIDIA's documented virtual instruction set ("Parallel Thread Execution ISA"); all rounded
operations here are its ``.rn`` ones, which are IEEE 754's.
"""

import re

FLAGS = ("-O1", "-fwrapv")  # integers of PTX wrap around

_ENTRY = re.compile(r"\.visible \.entry (\w+)\((.*?)\)(.*?)\n\}", re.DOTALL)
_PARAMETER = re.compile(r"\.param (?:\.align \d+ )?\.(\w+) (\w+)")
_REGISTERS = re.compile(r"\.reg \.(\w+)\s+%(\w+)<(\d+)>;")
_LINE = re.compile(r"(?:@(!?)%(\w+)\s+)?([a-z][\w.]*)\s*(.*);", re.DOTALL)
_OPERAND = re.compile(r"\{[^}]*\}|\[[^]]*\]|[^,\s]+")
_SPECIAL = {"%tid.x": "0u", "%ntid.x": "1u", "%ctaid.x": "first", "%nctaid.x": "stride"}
_TYPES = {
    "pred": "bool",
    **{f"{kind}{bits}": f"std::uint{bits}_t" for kind in "bu" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": f"std::int{bits}_t" for bits in (8, 16, 32, 64)},
    "f32": "float",
    "f64": "double",
}
_COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_BINARY = {"add": "+", "sub": "-", "mul": "*", "div": "/", "rem": "%", "and": "&", "or": "|"}
_BINARY |= {"xor": "^", "shl": "<<", "shr": ">>"}
_HEAD = """\
#include <cmath>
#include <cstdint>
#include <cstring>

static std::uint32_t first = 0, stride = 1;

extern "C" void play_thread(std::uint64_t own, std::uint64_t all) {
    first = static_cast<std::uint32_t>(own);
    stride = static_cast<std::uint32_t>(all);
}

template <class T, class B>
static T bits(B from) {
    T to;
    static_assert(sizeof to == sizeof from);
    std::memcpy(&to, &from, sizeof to);
    return to;
}

template <class T>
static T at(std::uint64_t address) {
    T value;
    std::memcpy(&value, reinterpret_cast<const void *>(address), sizeof value);
    return value;
}

template <class T>
static void put(std::uint64_t address, T value) {
    std::memcpy(reinterpret_cast<void *>(address), &value, sizeof value);
}

"""


def translate(ptx):
    """C++ with a function for each entry of `ptx`, and ``play_thread``.

    Raises:
        LookupError: An instruction that is not known here.
    """
    entries = [_entry(*found.groups()) for found in _ENTRY.finditer(ptx)]
    assert entries
    return _HEAD + "\n".join(entries)


def _entry(name, parameters, body):
    taken = [f"{_TYPES[kind]} {own}" for kind, own in _PARAMETER.findall(parameters)]
    lines = [f'extern "C" void {name}({", ".join(taken)}) {{']
    for kind, letter, count in _REGISTERS.findall(body):
        names = ", ".join(f"{letter}{index}{{}}" for index in range(int(count)))
        lines.append(f"    [[maybe_unused]] {_TYPES[kind]} {names};")
    instructions = body[body.index("{") + 1 :]
    for part in re.findall(r"\$?\w+:|[^;:]+;", re.sub(r"//.*", "", instructions)):
        text = part.strip()
        if text.endswith(":"):
            lines.append(text[1:])
        elif not text.startswith("."):
            lines.append(f"    {_statement(text)}")
    return "\n".join([*lines, "    return;", "}", ""])


def _statement(text):
    negated, predicate, opcode, rest = _LINE.fullmatch(text).groups()
    name, *modifiers = opcode.split(".")
    statement = _operation(name, modifiers, _OPERAND.findall(rest), text)
    return f"if ({negated or ''}{predicate}) {statement}" if predicate else statement


def _operation(name, modifiers, operands, text):
    if name == "ret":
        return "return;"
    if name == "bra":
        return f"goto {operands[0][1:]};"
    if name == "ld":
        return _load(modifiers, operands)
    if name == "st":
        return _store(modifiers[-1], operands)
    target, kind = operands[0][1:], modifiers[-1]
    if name == "mov" and kind[0] == "b":  # between kinds of registers
        return f"{target} = bits<decltype({target})>({operands[1][1:]});"
    if name == "cvt":
        return f"{target} = {_converted(modifiers, operands[1])};"
    given = [_cast(kind, operand) for operand in operands[1:]]
    if name in ("shl", "shr"):
        given[1] = _cast("u32", operands[2])
    if name == "selp":
        given[2] = operands[3][1:]
    value = _VALUES.get(name, _arithmetic)(name, modifiers, given)
    if value is None:
        raise LookupError(f"instruction {text!r} is not known here")
    return f"{target} = {value};"


def _arithmetic(name, modifiers, given):
    """Operators of C++; floats only where they are rounded to nearest."""
    kind = modifiers[-1]
    if name not in _BINARY or (kind[0] == "f" and modifiers[0] != "rn"):
        return None
    if name == "mul" and modifiers[0] == "hi":
        wide = f"static_cast<unsigned __int128>({given[0]}) * {given[1]}"
        return f"static_cast<std::uint64_t>(({wide}) >> 64)" if kind == "u64" else None
    if name == "mul" and modifiers[0] == "wide":
        return f"static_cast<std::uint64_t>({given[0]}) * {given[1]}" if kind == "u32" else None
    return f"static_cast<{_TYPES[kind]}>({given[0]} {_BINARY[name]} {given[1]})"


def _larger(name, modifiers, given):
    sign = "<" if name == "min" else ">"
    return None if modifiers[-1][0] == "f" else "{0} {2} {1} ? {0} : {1}".format(*given, sign)


def _root(name, modifiers, given):
    return f"std::sqrt({given[0]})" if modifiers[0] == "rn" else None


_VALUES = {
    "mov": lambda name, modifiers, given: given[0],
    "cvta": lambda name, modifiers, given: given[0],
    "neg": lambda name, modifiers, given: f"-{given[0]}",
    "not": lambda name, modifiers, given: f"{'!' if modifiers[-1] == 'pred' else '~'}{given[0]}",
    "abs": lambda name, modifiers, given: f"std::fabs({given[0]})",
    "selp": lambda name, modifiers, given: f"{given[2]} ? {given[0]} : {given[1]}",
    "setp": lambda name, modifiers, given: _compared(modifiers[0], modifiers[-1], *given),
    "sqrt": _root,
    "min": _larger,
    "max": _larger,
}


def _compared(how, kind, left, right):
    """Comparisons; the unordered ones of floats are true where one is NaN."""
    if kind[0] == "f" and how.endswith("u") and how[:-1] in _COMPARE:
        return f"(std::isnan({left}) || std::isnan({right}) || {left} {_COMPARE[how[:-1]]} {right})"
    if kind[0] == "f" and how == "ne":
        return f"({left} < {right} || {left} > {right})"
    return f"{left} {_COMPARE[how]} {right}"


def _converted(modifiers, operand):
    to, source = modifiers[-2:]
    if to[0] == "f" and "rn" not in modifiers and not source[0] == "f":
        raise LookupError(f"conversion {modifiers} is not known here")
    return f"static_cast<{_TYPES[to]}>({_cast(source, operand)})"


def _load(modifiers, operands):
    kind = modifiers[-1]
    if "param" in modifiers:
        return f"{operands[0][1:]} = bits<decltype({operands[0][1:]})>({operands[1][1:-1]});"
    loaded = [
        f"{own[1:]} = at<{_TYPES[kind]}>({_address(operands[1])} + {index * _size(kind)});"
        for index, own in enumerate(_each(operands[0]))
    ]
    return f"{{ {' '.join(loaded)} }}"


def _store(kind, operands):
    address, values = _address(operands[0]), _each(operands[1])
    stored = [
        f"put<{_TYPES[kind]}>({address} + {index * _size(kind)}, {_cast(kind, value)});"
        for index, value in enumerate(values)
    ]
    return f"{{ {' '.join(stored)} }}"


def _each(operand):
    """The operands in braces, or the one."""
    return [each.strip() for each in operand.strip("{}").split(",")]


def _address(operand):
    register, _, offset = operand[1:-1].partition("+")
    return f"{register[1:]} + ({offset or 0})"


def _size(kind):
    return int(kind[1:]) // 8


def _cast(kind, operand):
    """An operand read as `kind`."""
    if operand in _SPECIAL:
        return _SPECIAL[operand]
    if operand.startswith("0f"):
        return f"bits<float>(0x{operand[2:]}u)"
    if operand.startswith("0d"):
        return f"bits<double>(UINT64_C(0x{operand[2:]}))"
    if operand.startswith("%"):
        register = operand[1:]
        if kind == "pred" or kind[0] == "f":
            return register
        return f"static_cast<{_TYPES[kind]}>({register})"
    return f"static_cast<{_TYPES[kind]}>({int(operand)}LL)"
