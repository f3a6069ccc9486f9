import hashlib
import json
from typing import Any

import pytest
import torch
from torch import Tensor

from nbcompile.core import record
from nbcompile.core.errors import CheckpointError

PAYLOAD: dict[str, Any] = {"site": {"name": "a.b", "ratio": 6}, "text": "×", "list": [1.5, None, True]}


def sealed(text: bytes) -> Tensor:
    """A record with a right checksum, whatever it says."""
    return torch.frombuffer(bytearray(b"nbcompile" + hashlib.sha256(text).digest() + text), dtype=torch.uint8)


def test_round_trip() -> None:
    value = record.encode_record(PAYLOAD)
    assert value.dtype == torch.uint8
    assert record.is_record(value)
    assert record.decode_record(value, "here") == {"format": record.RECORD_FORMAT, **PAYLOAD}


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int16, torch.int64]
)
def test_survives_a_cast(dtype: torch.dtype) -> None:
    value = record.encode_record(PAYLOAD).to(dtype)
    assert record.is_record(value)
    assert record.decode_record(value, "here")["site"] == PAYLOAD["site"]
    assert torch.equal(record.as_bytes(value), record.encode_record(PAYLOAD))


@pytest.mark.parametrize("count", [2, 3, 7, 10])
def test_survives_averages(count: int) -> None:
    value = record.encode_record(PAYLOAD)
    mean = sum(value.float() for _ in range(count)) / count
    assert isinstance(mean, Tensor)
    assert record.decode_record(mean, "here")["site"] == PAYLOAD["site"]
    ema = value.float()
    for _ in range(count):
        ema = 0.9999 * ema + (1 - 0.9999) * value
    assert record.decode_record(ema, "here")["site"] == PAYLOAD["site"]


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"nbcompile",
        torch.zeros(20),
        torch.zeros(20, dtype=torch.bool),
        torch.full((20,), float("nan")),
        torch.full((20,), float("inf")),
        torch.full((20,), -1),
        torch.zeros(20, dtype=torch.complex64),
        torch.zeros(20, dtype=torch.float8_e5m2),
        torch.zeros(20, device="meta"),
        torch.zeros(20).to_sparse(),
        torch.zeros(4, 5, dtype=torch.uint8),
        torch.zeros((), dtype=torch.uint8),
        torch.zeros(0, dtype=torch.uint8),
        record.encode_record(PAYLOAD)[:8],
        record.encode_record(PAYLOAD)[None],
    ],
)
def test_other_values_are_no_records(value: object) -> None:
    assert not record.is_record(value)


@pytest.mark.parametrize("place", [9, 40, 41, 60, -1])
def test_a_changed_byte_is_seen(place: int) -> None:
    value = record.encode_record(PAYLOAD)
    value[place] ^= 1
    with pytest.raises(
        CheckpointError, match=r"^the checksum of the record 'a\._extra_state' fails: the file is damaged"
    ):
        record.decode_record(value, "a._extra_state")


@pytest.mark.parametrize("length", [9, 20, 41, 60])
def test_a_cut_record_is_seen(length: int) -> None:
    with pytest.raises(CheckpointError, match="the checksum of the record 'here' fails"):
        record.decode_record(record.encode_record(PAYLOAD)[:length], "here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b"{", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b'{"format": 1, "x": NaN}', "is no JSON: NaN is no number of JSON"),
        (b'{"format": 1, "x": -Infinity}', "is no JSON: -Infinity is no number of JSON"),
        (b'{"format": 1, "x": ' + b"9" * 5000 + b"}", "is no JSON"),
        (b"[1]", "has no format version"),
        (b'{"site": 1}', "has no format version"),
        (b'{"format": "1"}', "has no format version"),
        (b'{"format": true}', "has no format version"),
        (b'{"format": 0}', "has no format version"),
        (b'{"format": 2}', "has format 2, but this nbcompile reads up to 1: upgrade it"),
        (b'{"format": 99, "what": "else"}', "has format 99, but this nbcompile reads up to 1: upgrade it"),
    ],
)
def test_what_a_right_checksum_does_not_excuse(text: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"^the record 'here' {message}"):
        record.decode_record(sealed(text), "here")


def test_too_large_is_neither_written_nor_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "MAX_RECORD_BYTES", 100)
    with pytest.raises(CheckpointError, match=r"the record would have 1,0\d\d bytes; at most 100 are written"):
        record.encode_record({"x": "a" * 1000})
    value = sealed(json.dumps({"format": 1, "x": "a" * 1000}).encode())
    with pytest.raises(CheckpointError, match=r"the record 'here' has 1,0\d\d bytes; at most 100 are read"):
        record.decode_record(value, "here")


def test_what_json_lacks_is_not_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        record.encode_record({"x": float("nan")})


def test_items_are_counted_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty list takes two bytes in a file and a hundred in memory."""
    monkeypatch.setattr(record, "MAX_RECORD_ITEMS", 50)
    with pytest.raises(CheckpointError, match=r"^the record would have 62 items; at most 50 are written$"):
        record.encode_record({"x": [[]] * 30})
    value = sealed(json.dumps({"format": 1, "x": [[]] * 30}).encode())
    with pytest.raises(CheckpointError, match=r"^the record 'here' has 62 items; at most 50 are read$"):
        record.decode_record(value, "here")
    record.decode_record(sealed(b'{"format": 1, "x": "' + b"a" * 1000 + b'"}'), "here")
