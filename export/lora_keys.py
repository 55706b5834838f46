"""LoRA keys: which layer of a UNet each tensor of a LoRA file belongs to, in three styles.

    kohya      lora_unet_<layer>.lora_down.weight   .lora_up.weight   .alpha
    diffusers  unet.<layer>.lora.down.weight        .lora.up.weight          or .lora_A, .lora_B;
               before, <block>.processor.to_q_lora.down.weight
    peft       base_model.model.<layer>.lora_A[.default].weight  .lora_B…    adapter_config.json

<layer> is diffusers' or the checkpoint's own name of a layer, in kohya's style with ``_`` for every
dot. Beginning, layer and ending are read each on its own, so mixtures of the styles load as well.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from jscc.runtime.errors import CheckpointError

MAX_LISTED = 3
MAX_SHOWN = 160  # signs of a key in a message, or compared with the layers' names
PAIR = "an up and a down matrix for layers of the UNet"
PEFT = "base_model.model."
TEXT = ("lora_te", "text_encoder", "text_model")
# What begins a part of a key, and the method that is not this one.
OTHERS = MappingProxyType(
    {
        "lora_mid": "LoCon with a CP decomposition",
        "hada_": "LoHa",
        "lokr_": "LoKr",
        "dora_scale": "DoRA",
        "lora_magnitude_vector": "DoRA",
        "ia3_l": "IA3",
        "on_input": "IA3",
        "oft_": "OFT",
    }
)
_BEGINNING = re.compile(r"(?:lora_unet_|unet\.|(?:model\.)?diffusion_model\.)?")
_KEY = re.compile(
    r"(?P<layer>.+?)(?:"
    r"(?P<down>\.lora_down\.weight|[._]lora\.down\.weight|\.lora_A(?:\.\w+)?\.weight)"
    r"|(?P<up>\.lora_up\.weight|[._]lora\.up\.weight|\.lora_B(?:\.\w+)?\.weight)"
    r"|(?P<alpha>(?:[._]lora)?\.alpha))",
    re.DOTALL,
)

Keys = dict[str, str]  # of one layer: "up", "down" and maybe "alpha", each with its key


def sort_keys(
    where: str, keys: Sequence[str], names: Mapping[str, str]
) -> tuple[dict[str, Keys], int]:
    """The keys of every layer of the UNet, and how many layers of text encoders there are."""
    index = _index(names)
    layers: dict[str, Keys] = {}
    text: set[str] = set()
    strangers, unknown = [], []
    for key in keys:
        _refuse_other(where, key)
        found = _KEY.fullmatch(key)
        if key.removeprefix(PEFT).startswith(TEXT):
            text.add(found["layer"] if found else key)
        elif found is None:
            strangers.append(key)
        elif (layer := index.get(_flat(found["layer"]))) is None:
            unknown.append(key)
        else:
            _add(where, layers.setdefault(layer, {}), str(found.lastgroup), key)
    if strangers:
        raise _refused(where, f"{len(strangers)} keys of no LoRA ({shown(strangers)})", PAIR)
    if unknown:
        got = f"{len(unknown)} keys of layers that the UNet has not ({shown(unknown)})"
        raise _refused(where, got, f"its layers, the nearest {_nearest(unknown[0], names)}")
    if not layers:
        raise _refused(where, f"changes of {len(text)} layers of a text encoder alone", PAIR)
    for layer, parts in layers.items():
        if missing := [role for role in ("up", "down") if role not in parts]:
            got = f"{shown(list(parts.values()))} alone"
            raise _refused(where, got, f"{' and '.join(missing)} of {layer} beside it")
    return layers, len(text)


def _add(where: str, parts: Keys, role: str, key: str) -> None:
    if role in parts:
        raise _refused(where, f"{shown([parts[role], key])} for one layer", "one of them")
    parts[role] = key


def _index(names: Mapping[str, str]) -> dict[str, str]:
    """Own names of the layers, by all names under which they are published, flat."""
    index = {_flat(name): own for own, theirs in names.items() for name in (own, theirs)}
    short = {name.removesuffix("_0"): own for name, own in index.items() if "_to_out_" in name}
    return {**short, **index}  # the output projection's index is often left out


def _flat(name: str) -> str:
    """A layer's name as kohya writes it, without what its file's style puts before or within."""
    bare = name.removeprefix(PEFT)
    bare = bare[_BEGINNING.match(bare).end() :]  # type: ignore[union-attr]  # matches nothing too
    return bare.replace(".processor.", ".").replace(".", "_")


def _nearest(key: str, names: Mapping[str, str]) -> str:
    found = _KEY.fullmatch(key)
    flat = _flat(found["layer"] if found else key)[:MAX_SHOWN]
    dotted = {_flat(name): name for pair in names.items() for name in pair}
    return dotted[difflib.get_close_matches(flat, dotted, n=1, cutoff=0.0)[0]]


def _refuse_other(where: str, key: str) -> None:
    for part in key.split("."):
        for mark, method in OTHERS.items():
            if part.startswith(mark):
                raise CheckpointError(
                    "E_LORA_KIND",
                    f"{where}: got {method} ({shown([key])}), expected LoRA: one up and one down "
                    "matrix a layer. Merge it where it was trained and give the checkpoint.",
                )


def _refused(where: str, got: str, expected: str) -> CheckpointError:
    return CheckpointError(
        "E_LORA_KEYS",
        f"{where}: got {got}, expected {expected}. Check that it is a LoRA of the checkpoint's "
        "UNet.",
    )


def shown(keys: Sequence[str]) -> str:
    """The first few keys for a message, short and printable."""
    rest = len(keys) - MAX_LISTED
    listed = ", ".join(ascii(key[:MAX_SHOWN])[1:-1] for key in keys[:MAX_LISTED])
    return listed + (f", … {rest} more" if rest > 0 else "")
