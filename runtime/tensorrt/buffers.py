"""TensorRT buffers: the device memory of one run's tensors."""

from contextlib import suppress
from dataclasses import dataclass, field

from jscc.runtime.device.device import Device
from jscc.runtime.errors import UnavailableError


@dataclass
class Buffers:
    """Device memory by tensor; kept from run to run, made anew where it is too small."""

    device: Device
    _held: dict[str, tuple[int, int]] = field(default_factory=dict)

    def at_least(self, name: str, size: int) -> int:
        """The address of `size` bytes or more.

        Raises:
            UnavailableError: ``E_MEMORY``.
        """
        address, held = self._held.get(name, (0, -1))
        if size > held:
            if address:
                del self._held[name]
                self.device.free(address)
            address = self.device.allocate(size)
            self._held[name] = (address, size)
        return address

    def close(self) -> None:
        """Give all of it back."""
        held, self._held = self._held, {}
        for address, _ in held.values():
            with suppress(UnavailableError):  # the others are to go as well
                self.device.free(address)
