"""A run's log: one JSON object a line, and beside it the same numbers as TensorBoard reads them.

A TensorBoard file is a sequence of framed protocol buffers (TFRecord); only events with scalars are needed, and these are
few enough bytes to write here. Each frame is length, masked CRC of it, event, masked CRC of it.
"""
import json
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lib.errors import UserError
from lib.record import atomic

EVENTS = "events.out.tfevents.run"  # TensorBoard looks for "tfevents" in the name
LENGTH = struct.Struct("<Q")
CRC = struct.Struct("<I")
CASTAGNOLI = 0x82F63B78  # the polynomial, reflected


class Log:
    """`path` and the TensorBoard file beside it, continued at `step`: lines from there on, and half a line, are dropped."""

    def __init__(self, path: Path, step: int):
        self._path, self._events, self._step = path, path.with_name(EVENTS), step

    def __enter__(self) -> "Log":
        lines = [line for line in read_log(self._path) if line["step"] < self._step] if self._step else []
        with atomic(self._path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
        events = _events(self._events.read_bytes()) if self._step and self._events.exists() else ()
        with atomic(self._events) as temporary:
            kept = b"".join(_frame(held) for step, held in events if step <= self._step)
            temporary.write_bytes(_frame(_double(1, time.time()) + _bytes(3, b"brain.Event:2")) + kept)
        self._stream, self._scalars = open(self._path, "a"), open(self._events, "ab")
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._scalars.close()

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line, handed to the operating system at once: a killed process loses none."""
        self._stream.write(json.dumps(line) + "\n")
        self._stream.flush()
        self._scalars.write(_frame(event(line["step"] + 1, scalars(line))))
        self._scalars.flush()


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The whole lines of a log; a last line without its end is left out. UserError if there is no log."""
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror}); train first") from error
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def scalars(line: Mapping[str, Any], group: str = "train") -> dict[str, float]:
    """The numbers of a line by TensorBoard's tags: "train/loss", "evaluation/AP", "cost/epoch_seconds"."""
    found = {}
    for name, value in line.items():
        if isinstance(value, Mapping):
            found |= scalars(value, name)
        elif name != "step":
            found[f"{group}/{name}"] = value
    return found


def event(step: int, values: Mapping[str, float], moment: float | None = None) -> bytes:
    """The protocol buffer of scalars at `step` (>= 0: steps done), `moment` in seconds since 1970 (None: now)."""
    summary = b"".join(_bytes(1, _bytes(1, tag.encode()) + b"\x15" + struct.pack("<f", value)) for tag, value in values.items())
    return _double(1, time.time() if moment is None else moment) + b"\x10" + _varint(step) + _bytes(5, summary)


def _double(field: int, value: float) -> bytes:
    return bytes([field << 3 | 1]) + struct.pack("<d", value)


def _bytes(field: int, content: bytes) -> bytes:
    return bytes([field << 3 | 2]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """Seven bits a byte, lowest first; all but the last have the top bit."""
    low, high = value & 127, value >> 7
    return bytes([low | 128]) + _varint(high) if high else bytes([low])


def _frame(content: bytes) -> bytes:
    length = LENGTH.pack(len(content))
    return length + CRC.pack(masked(length)) + content + CRC.pack(masked(content))


def _events(content: bytes) -> Iterator[tuple[int, bytes]]:
    """(step, event) of each whole frame that holds scalars; `event` writes the step behind the nine bytes of the time."""
    at = 0
    while at + 12 <= len(content):
        length = LENGTH.unpack_from(content, at)[0]
        held = content[at + 12 : at + 12 + length]
        at += 16 + length
        if at <= len(content) and held[9] == 0x10:
            step = shift = 0
            for byte in held[10:]:
                step |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
            yield step, held


def masked(content: bytes) -> int:
    """CRC-32C, rotated and shifted as TFRecord asks, so that a CRC over data that holds CRCs stays good."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _row(byte: int) -> int:
    for _ in range(8):
        byte = (byte >> 1) ^ (CASTAGNOLI if byte & 1 else 0)
    return byte


_TABLE = [_row(byte) for byte in range(256)]
