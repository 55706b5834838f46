"""DeepJSCC: a codec alone, one network on either side of the channel.

Bourtsoulatze, Kurka, Gündüz, "Deep Joint Source-Channel Coding for Wireless Image Transmission",
arXiv:1809.01733. The codecs are those of DiffJSCC (Yang et al., arXiv:2404.17736): residual
convolutional and Swin; a whole DiffJSCC checkpoint is taken too, its codec used and the rest left.
"""

from jscc.export.codecs import codec_config, codec_of
from jscc.export.source import WeightSource
from jscc.export.system import Options, Plan, System
from jscc.export.systems.diffjscc import SYSTEM as DIFFJSCC
from jscc.runtime.manifest import ImageContract


def plan(source: WeightSource, options: Options) -> Plan:
    """Encode and decode, nothing else."""
    config, prefix = codec_config(source.config)
    codec = codec_of(source, config, prefix)
    return Plan(
        variant=str(config["target"]).rsplit(".", 1)[-1],
        stages=(codec.encode, codec.decode),
        signal=codec.signal,
        image=ImageContract(
            multiple=codec.multiple,
            short_edge=options.short_edge,
            rounding="truncate",
            tile=codec.multiple * max(1, 1024 // codec.multiple),
            overlap=codec.multiple * max(1, 64 // codec.multiple),
            max_pixels=1 << 24,
        ),
        program=("decode",),
        image_output="reconstruction",
    )


SYSTEM = System(
    paper="Deep Joint Source-Channel Coding for Wireless Image Transmission, arXiv:1809.01733",
    plan=plan,
    reference="diffjscc",
    prefixes=("E.", "G.", "encoder.", "decoder.", *DIFFJSCC.prefixes),
    ignored=DIFFJSCC.ignored,
)
