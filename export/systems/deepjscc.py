"""DeepJSCC: a codec alone, one network on either side of the channel.

Bourtsoulatze, Kurka, Gündüz, "Deep Joint Source-Channel Coding for Wireless Image Transmission",
arXiv:1809.01733. Which codec it is, the weights' names tell, ``--codec`` or an official
configuration: see `jscc.export.codecs`. A whole DiffJSCC checkpoint (Yang et al., arXiv:2404.17736)
is taken too, its codec used and the rest left.
"""

from jscc.export.codecs import Codec, codec_of
from jscc.export.source import WeightSource
from jscc.export.system import Options, Plan, System
from jscc.export.systems.diffjscc import SYSTEM as DIFFJSCC
from jscc.runtime.manifest import ImageContract


def plan(source: WeightSource, options: Options) -> Plan:
    """Encode and decode, nothing else."""
    return plan_of(codec_of(source, source.config, ""), options)


def plan_of(codec: Codec, options: Options) -> Plan:
    """The plan of `codec` alone."""
    return Plan(
        variant=codec.variant,
        stages=(codec.encode, codec.decode),
        signal=codec.signal,
        image=ImageContract(
            multiple=codec.multiple,
            short_edge=options.short_edge,
            rounding=codec.rounding,
            tile=codec.multiple * max(1, 1024 // codec.multiple),
            overlap=codec.multiple * max(1, 64 // codec.multiple),
            max_pixels=1 << 24,
            padding=codec.padding,
        ),
        program=("decode",),
        image_output="reconstruction",
    )


SYSTEM = System(
    paper="Deep Joint Source-Channel Coding for Wireless Image Transmission, arXiv:1809.01733",
    plan=plan,
    roles={"": "af-96"},
    prefixes=("E.", "G.", "encoder.", "decoder.", *DIFFJSCC.prefixes),
    ignored=DIFFJSCC.ignored,
)
