"""An enclave image on its way into enclave memory, and what is there then.

The bytes go from the file straight into huge pages, across the borders of regions; they never pass through memory of
Python's. One thread copies; the caller follows it and measures what lies in the memory, with one more thread for the
second sum. A file that changes meanwhile changes the measurement with it, or is noticed where the structure that has
been checked is no longer there.

The driver wants all of it done before it is told of the memory.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial

from pyrune.eif.files import reason
from pyrune.eif.format import HEADER_BYTES, SECTION_HEADER_BYTES
from pyrune.eif.measure import Measurements, Measurer, Runner, run_in_turn
from pyrune.eif.reader import EifImage
from pyrune.eif.signature import require_signed
from pyrune.errors import BackendError, EifError
from pyrune.ne.memory import EnclaveMemory, HugeRegion

# The unit of copying and measuring: large enough that threads rarely wait for each other, small enough for the caches.
_STEP_BYTES = 4 << 20


def place(image: EifImage, memory: EnclaveMemory, offset: int) -> Measurements:
    """Copy the image to `offset` of enclave memory, have all other pages, and measure what was copied.

    Raises EifError if the image is damaged, changed meanwhile, or bears a signature that does not hold;
    BackendError when huge pages are missing after all.
    """
    copy = _Copy(image, memory, offset)
    try:
        with ThreadPoolExecutor(1, "sum") as beside:
            measurements = _measure(image, memory, offset, copy, partial(_run_beside, beside))
        copy.wait()
    finally:
        copy.stop()
    _check(image, memory, offset, measurements)
    return measurements


def _run_beside(other: Executor, jobs: Sequence[Callable[[], None]]) -> None:
    """Run the first of `jobs` here and the others in another thread: hashing lets other threads run."""
    rest = other.submit(run_in_turn, jobs[1:])
    jobs[0]()
    rest.result()


def _measure(image: EifImage, memory: EnclaveMemory, offset: int, copy: _Copy, run: Runner) -> Measurements:
    measurer = Measurer(image.header, image.sections, run)
    try:
        for section in image.sections:
            start = offset + section.data_offset
            for region, begin, end in _steps(memory, start, section.size_bytes):
                start += end - begin
                copy.wait_for(start)
                with region.piece(begin, end) as piece:
                    measurer.update(section, piece)
        return measurer.finish()
    except EifError as exc:
        raise image.error(exc.problem, exc.offset) from exc


def _check(image: EifImage, memory: EnclaveMemory, offset: int, measurements: Measurements) -> None:
    """Raise EifError unless memory holds the image whose structure was checked, whole and, if signed, as signed."""
    same = memory.read(offset, HEADER_BYTES) == image.header.pack() and all(
        memory.read(offset + section.offset, SECTION_HEADER_BYTES) == section.pack_header()
        for section in image.sections
    )
    if not same:
        raise image.error("it was changed while it was read", 0)
    if measurements.crc32 != image.header.crc32:
        found = f"{measurements.crc32:#010x}, its header says {image.header.crc32:#010x}"
        raise image.error(f"it is damaged: its checksum is {found}")
    if image.signature is not None:
        data = memory.read(offset + image.signature.data_offset, image.signature.size_bytes)
        require_signed(image, image.signature, data, measurements.pcr0)


def _steps(memory: EnclaveMemory, offset: int, size_bytes: int) -> Iterator[tuple[HugeRegion, int, int]]:
    """The parts of regions where these bytes of enclave memory lie, in order, none of them long."""
    for region, start, end in memory.locate(offset, size_bytes):
        for begin in range(start, end, _STEP_BYTES):
            yield region, begin, min(end, begin + _STEP_BYTES)


class _Copy:
    """The copying thread. `offset` of enclave memory is where the file goes."""

    def __init__(self, image: EifImage, memory: EnclaveMemory, offset: int) -> None:
        self._image = image
        self._memory = memory
        self._offset = offset
        self._changed = threading.Condition()
        self._done_until = offset
        self._error: BackendError | EifError | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="copy", daemon=True)
        self._thread.start()

    def wait_for(self, end: int) -> None:
        """Wait until enclave memory is filled up to `end`. Raises what the copying met."""
        with self._changed:
            self._changed.wait_for(lambda: self._done_until >= end or self._error is not None)
        self._raise_error()

    def wait(self) -> None:
        """Wait until everything is copied and every other page is there. Raises what that met."""
        self._thread.join()
        self._raise_error()

    def stop(self) -> None:
        """Have it end soon, and wait for that: nothing touches the memory afterwards."""
        self._stopping = True
        self._thread.join()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._copy()
            self._populate_rest()
        except (BackendError, EifError) as exc:
            with self._changed:
                self._error = exc
                self._changed.notify_all()

    def _copy(self) -> None:
        done = 0
        for region, start, end in _steps(self._memory, self._offset, self._image.size_bytes):
            if self._stopping:
                return
            with region.piece(start, end) as piece:
                _read_into(self._image, done, piece, region)
            done += end - start
            with self._changed:
                self._done_until = self._offset + done
                self._changed.notify_all()

    def _populate_rest(self) -> None:
        """Have every page that holds nothing of the image: one that is missing shall show here, not in the driver."""
        parts = self._memory.locate(self._offset, self._image.size_bytes)
        touched = {region: (start, end) for region, start, end in parts}
        for region in self._memory.regions:
            page = region.run.page_bytes
            start, end = touched.get(region, (0, 0))
            for begin, limit in ((0, start // page * page), (-(-end // page) * page, region.size_bytes)):
                if not self._stopping:
                    region.populate(begin, limit)


def _read_into(image: EifImage, offset: int, piece: memoryview, region: HugeRegion) -> None:
    """Fill a piece of a region from the image's file. Raises EifError, or BackendError where there is no page."""
    done = 0
    while done < len(piece):
        with piece[done:] as rest:
            try:
                got = os.preadv(image.fd, [rest], offset + done)
            except OSError as exc:
                if exc.errno == errno.EFAULT:
                    raise region.failure(errno.EFAULT) from exc
                raise image.error(f"it cannot be read: {reason(exc)}", offset + done) from exc
        if not got:
            raise image.error("it became shorter while it was read", offset + done)
        done += got
