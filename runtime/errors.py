"""Errors: every failure that a user can cause or meet, with a stable code and an exit status.

    JsccError
      UsageError          2   the call itself is wrong (unknown name, contradictory options)
      DataError          65   what was read is wrong
        CheckpointError       a trained checkpoint
        BundleError           a bundle: manifest, files, graphs
        SymbolsError          received symbols
        ImageError            an image to send, or one that came out wrong
        CsiError              what is said of the channel
        ParityError           an exported graph that differs from its source
      UnavailableError   69   an engine, provider or package that this machine lacks
      OutputError        73   an output that cannot be created
      StorageError       74   reading or writing failed half-way (disk full, I/O error)
      BusyError          75   somebody else holds the destination

Messages read ``<where>: got <value>, expected <contract>. <What to do>.``
"""


class JsccError(Exception):
    """Base of all errors raised on purpose by jscc-edge.

    Args:
        code: Stable identifier, ``E_…``; programs may compare it.
        message: One line for a human.
    """

    exit_status = 70

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]"

    def __reduce__(self) -> tuple[type["JsccError"], tuple[str, str]]:
        # Exceptions are copied by their one-argument form, and an error may come from a worker.
        return type(self), (self.code, self.message)


class UsageError(JsccError):
    """The call itself is wrong."""

    exit_status = 2


class DataError(JsccError):
    """What was read is wrong."""

    exit_status = 65


class CheckpointError(DataError):
    """A trained checkpoint cannot be used."""


class BundleError(DataError):
    """A bundle cannot be trusted or does not fit together."""


class SymbolsError(DataError):
    """Received symbols cannot be decoded."""


class ImageError(DataError):
    """An image cannot be sent, or what came out is not an image."""


class CsiError(DataError):
    """What is said of the channel cannot be used."""


class ParityError(DataError):
    """An exported graph differs from the network that it was made from."""


class UnavailableError(JsccError):
    """This machine lacks an engine, a provider or a package."""

    exit_status = 69


class OutputError(JsccError):
    """An output cannot be created."""

    exit_status = 73


class StorageError(JsccError):
    """Reading or writing failed half-way."""

    exit_status = 74


class BusyError(JsccError):
    """Somebody else holds the destination."""

    exit_status = 75
