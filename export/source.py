"""WeightSource: where a system's weights come from - a checkpoint, or a seeded generator.

Random weights exist so that latency, memory and parity of an architecture can be measured by
somebody who does not hold its checkpoint; a bundle made of them says so in its manifest.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from jscc.export.checkpoint import Checkpoint, load_into, select
from jscc.export.lora import Lora, merge_into
from jscc.export.tensor_file import form
from jscc.runtime.errors import CheckpointError
from jscc.runtime.manifest import NetworkSource, Source

Config = Mapping[str, Any]
Module = TypeVar("Module", bound=nn.Module)
Made = TypeVar("Made")


def configured(build: Callable[[], Made]) -> Made:
    """Build something, mostly a module, from a configuration that its networks may refuse.

    Raises:
        CheckpointError: ``E_CONFIG``, a value is missing or asks for what is not implemented.
    """
    try:
        return build()
    except KeyError as error:
        raise CheckpointError(
            "E_CONFIG",
            f"config: got no {error}, expected it among the parameters of a network. "
            "Give the configuration that the checkpoint was trained with.",
        ) from error
    except ValueError as error:
        raise CheckpointError("E_CONFIG", str(error)) from error


class WeightSource(Protocol):
    """Gives modules their weights and says where these came from."""

    @property
    def config(self) -> Config:
        """The checkpoint's configuration: official (``target``) or recognised (``family``).

        One per role where a system has several networks.
        """

    @property
    def folder(self) -> Path:
        """Where files that the configuration names are looked up."""

    def has(self, prefix: str) -> bool:
        """Whether any weight lies below `prefix`."""

    def shapes(self, prefix: str) -> Mapping[str, tuple[int, ...]]:
        """Shape of every weight below `prefix` by its name there; none where they are drawn."""

    def load(
        self, build: Callable[[], Module], prefix: str, ignore: tuple[str, ...] = ()
    ) -> Module:
        """Build a module and give it the weights below `prefix`, in eval mode.

        Raises:
            CheckpointError: ``E_CKPT_KEYS``, weights are missing, extra or misshapen.
        """

    def same(self, first: str, second: str) -> bool:
        """Whether the weights below both prefixes are identical, name by name."""

    def describe(self) -> Source:
        """The manifest's record of this source."""


@dataclass(frozen=True)
class NetworkFiles:
    """Where one network's weights come from.

    Attributes:
        files: Its files.
        licence: Licence of the weights, recorded as given.
        name: What they are called; by default the files' names.
    """

    files: tuple[Checkpoint, ...]
    licence: str
    name: str = ""

    def describe(self) -> NetworkSource:
        """The manifest's record of one network among several; every one of its files counts."""
        hashes = [file.sha256 for file in self.files]
        lines = "".join(f"{each}\n" for each in hashes)
        return NetworkSource(
            name=self.name or " + ".join(file.path.name for file in self.files),
            sha256=hashes[0] if len(hashes) == 1 else hashlib.sha256(lines.encode()).hexdigest(),
            licence=self.licence,
        )


@dataclass(frozen=True)
class CheckpointSource:
    """Weights of trained checkpoints.

    Attributes:
        networks: The system's networks by role.
        tensors: All weights of all networks.
        config: The configuration, or one per role.
        folder: Where the first network's configuration lies.
        loras: What is merged into the weights when they are loaded.
    """

    networks: Mapping[str, NetworkFiles]
    tensors: Mapping[str, torch.Tensor]
    config: Config
    folder: Path
    loras: tuple[Lora, ...] = ()

    def has(self, prefix: str) -> bool:
        """Whether any weight lies below `prefix`."""
        return any(key.startswith(prefix) for key in self.tensors)

    def shapes(self, prefix: str) -> Mapping[str, tuple[int, ...]]:
        """Shape of every weight below `prefix`; nothing is read."""
        below = select(self.tensors, prefix)
        return {name: form(below, name)[0] for name in below}

    def load(
        self, build: Callable[[], Module], prefix: str, ignore: tuple[str, ...] = ()
    ) -> Module:
        """Build on the meta device, assign the checkpoint's tensors and merge what changes them."""
        with torch.device("meta"):
            module = configured(build)
        tensors = select(self.tensors, prefix)
        role = prefix.partition(".")[0]
        network = self.networks.get(role) or next(iter(self.networks.values()))
        where = f"{network.files[0].path.name}, {prefix}*"
        load_into(module, tensors, where=where, ignore=ignore)
        merge_into(module, [lora for lora in self.loras if lora.prefix == prefix])
        return module.eval().requires_grad_(False)

    def same(self, first: str, second: str) -> bool:
        """Compare the SHA-256 of every tensor below both prefixes."""
        return self._digests(first) == self._digests(second)

    def _digests(self, prefix: str) -> dict[str, str]:
        return {
            name: hashlib.sha256(
                tensor.contiguous().flatten().view(torch.uint8).numpy().data
            ).hexdigest()
            for name, tensor in select(self.tensors, prefix).items()
        }

    def describe(self) -> Source:
        """The manifest's record of this source; of several networks, the hash of their hashes.

        Every LoRA counts as a network, and what its change is multiplied by beside its hash.
        """
        each = {role or "model": network.describe() for role, network in self.networks.items()}
        numbered = {f"lora_{number}": lora for number, lora in enumerate(self.loras, 1)}
        each |= {name: lora.describe() for name, lora in numbered.items()}
        if len(each) == 1:
            only = next(iter(each.values()))
            return Source(name=only.name, sha256=only.sha256, licence=only.licence)
        weights = {name: f" {lora.weight!r}" for name, lora in numbered.items()}
        hashes = "".join(
            f"{role} {network.sha256}{weights.get(role, '')}\n"
            for role, network in sorted(each.items())
        )
        return Source(
            name=", ".join(f"{role} {network.name}" for role, network in each.items()),
            sha256=hashlib.sha256(hashes.encode()).hexdigest(),
            licence=", ".join(dict.fromkeys(network.licence for network in each.values())),
            overrides=tuple(
                f"{name}: {note}" for name, lora in numbered.items() for note in lora.notes
            ),
            networks=each,
        )


@dataclass(frozen=True)
class RandomSource:
    """Weights drawn from a seed: for measuring, never for receiving."""

    config: Config
    folder: Path
    seed: int

    def has(self, prefix: str) -> bool:
        """Every weight that the configuration asks for can be drawn."""
        return True

    def shapes(self, prefix: str) -> Mapping[str, tuple[int, ...]]:
        """None: the configuration says what there is."""
        return {}

    def load(
        self, build: Callable[[], Module], prefix: str, ignore: tuple[str, ...] = ()
    ) -> Module:
        """Build with torch's own initialisation; what that leaves zero is drawn too."""
        digest = hashlib.sha256(f"{self.seed}:{prefix}".encode()).digest()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(digest[:7], "little"))
            module = configured(build)
            with torch.no_grad():
                for parameter in module.parameters():
                    if parameter.dim() > 1 and not parameter.any():
                        parameter.normal_(std=0.01)
        return module.eval().requires_grad_(False)

    def same(self, first: str, second: str) -> bool:
        """Random weights stand for a published file, whose two encoders are copies."""
        return True

    def describe(self) -> Source:
        """The manifest's record of this source."""
        return Source(
            name=f"random weights, seed {self.seed}", sha256="0" * 64, licence="none", overrides=()
        )
