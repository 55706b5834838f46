"""TensorRT shelf: the engines of one stage, in memory while they are used."""

import itertools
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from jscc.runtime.tensorrt.cache import MOST, is_single
from jscc.runtime.tensorrt.engine import Engine
from jscc.runtime.tensorrt.spans import Span

Sizes = tuple[tuple[str, int], ...]  # of each symbol


@dataclass(eq=False)
class Slot:
    """One engine.

    Attributes:
        name: Of its file in the cache; empty where it could not be kept.
        spans: Sizes of its profiles, in their order; empty where all shapes are fixed.
        engine: None while it is on the disk only.
        used: Grows from use to use of any slot.
        lock: Of whoever loads it.
    """

    name: str
    spans: tuple[Span, ...]
    engine: Engine | None = None
    used: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Shelf:
    """The slots of one stage; threads may share it.

    Args:
        files: Spans of the engines in the cache, by file.
    """

    def __init__(self, files: Mapping[str, tuple[Span, ...]]) -> None:
        self._slots = [Slot(name, spans) for name, spans in files.items()]
        self._clock = itertools.count(1)
        self._lock = threading.Lock()

    @property
    def loaded(self) -> tuple[Engine, ...]:
        """The engines in memory."""
        with self._lock:
            return tuple(slot.engine for slot in self._slots if slot.engine is not None)

    def find(self, sizes: Mapping[str, int]) -> tuple[Slot, int] | None:
        """The slot and the profile with the narrowest span that covers `sizes`."""
        with self._lock:
            fitting = [
                (span.reach, place, number)
                for place, slot in enumerate(self._slots)
                for number, span in enumerate(slot.spans or (Span(),))
                if span.covers(sizes)
            ]
            if not fitting:
                return None
            _, place, number = min(fitting)
            return self._slots[place], number

    def add(self, slot: Slot) -> None:
        """Put a slot in, in place of one of the same file."""
        with self._lock:
            self._slots = [each for each in self._slots if not slot.name or each.name != slot.name]
            self._slots.append(slot)
        self.touch(slot)

    def remove(self, slot: Slot) -> None:
        """Take a slot out."""
        with self._lock:
            if slot in self._slots:
                self._slots.remove(slot)

    def touch(self, slot: Slot) -> None:
        """Count a slot as used now; of engines for one size, the oldest beyond `MOST` go."""
        with self._lock:
            slot.used = next(self._clock)
            single = [
                each for each in self._slots if each.engine is not None and is_single(each.spans)
            ]
            single.sort(key=lambda each: each.used)
            old = [self._drop(each) for each in single[:-MOST]]
        for engine in old:
            engine.close()

    def reliefs(self, spared: Slot | None) -> Iterator[bool]:
        """True each time that more of the device's memory was given back."""
        for engine in self.loaded:
            engine.shrink()
        yield True
        while self._drop_oldest(spared):
            yield True

    def clear(self) -> bool:
        """Give back all that is in memory; whether there was anything."""
        found = False
        while self._drop_oldest(None):
            found = True
        return found

    def _drop_oldest(self, spared: Slot | None) -> bool:
        with self._lock:
            others = [each for each in self._slots if each.engine is not None and each != spared]
            if not others:
                return False
            engine = self._drop(min(others, key=lambda each: each.used))
        engine.close()
        return True

    def _drop(self, slot: Slot) -> Engine:
        """Leave an engine on the disk, or nowhere if it is not there; the lock is held."""
        engine, slot.engine = slot.engine, None
        assert engine is not None
        if not slot.name:
            self._slots.remove(slot)
        return engine
