"""Records: JSON in a uint8 tensor, with a checksum of its own bytes.

A record travels in a state_dict (as a block's extra state) through trainers that copy, cast and average what they
find there. Its bytes are constant, so an average of copies is the record again; the checksum tells when it is not.
"""

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

from nbcompile.core.errors import CheckpointError

RECORD_FORMAT = 1
MAX_RECORD_BYTES = 32 * 2**20
MAX_RECORD_ITEMS = 2**20
"""Items of lists and dicts in a record: a value of two bytes in a file takes a hundred in memory."""
_MAGIC = b"nbcompile"  # then the digest of the text, then the text
_DIGEST = hashlib.sha256().digest_size


def encode_record(payload: dict[str, Any]) -> Tensor:
    """``payload`` as a 1-dim uint8 tensor.

    Raises:
        CheckpointError: if it would be larger than :data:`MAX_RECORD_BYTES`, or have more than
            :data:`MAX_RECORD_ITEMS`.
    """
    # NaN and Infinity are Python's, not JSON's; the digest is of the very bytes that are read, so no spelling matters.
    text = json.dumps({"format": RECORD_FORMAT, **payload}, separators=(",", ":"), allow_nan=False).encode()
    if len(text) > MAX_RECORD_BYTES:
        raise CheckpointError(f"the record would have {len(text):,} bytes; at most {MAX_RECORD_BYTES:,} are written")
    if (items := _items(text)) > MAX_RECORD_ITEMS:
        raise CheckpointError(f"the record would have {items:,} items; at most {MAX_RECORD_ITEMS:,} are written")
    return torch.frombuffer(bytearray(_MAGIC + hashlib.sha256(text).digest() + text), dtype=torch.uint8)


def is_record(value: object) -> bool:
    """Whether ``value`` looks like a record: a vector of bytes (of any dtype) that starts with the magic word."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_meta or value.is_quantized:
        return False
    # By its looks alone, and cheaply: every tensor of a foreign state_dict is asked.
    if value.ndim != 1 or value.numel() < len(_MAGIC) or value.is_complex():
        return False
    return as_bytes(value[: len(_MAGIC)]).numpy().tobytes() == _MAGIC


def as_bytes(value: Tensor) -> Tensor:
    """A record as uint8 on the CPU, whatever dtype and device it was cast to."""
    value = value.detach().cpu()
    # through float64: an average is off by its rounding, and bool and float8 cannot be rounded
    return value.clone() if value.dtype == torch.uint8 else value.double().round().to(torch.uint8)


def decode_record(value: Tensor, where: str) -> dict[str, Any]:
    """The payload of a record.

    Args:
        value: what :func:`encode_record` gave, perhaps cast to another dtype and back.
        where: the key it stood under, named in errors.

    Raises:
        CheckpointError: if it is too large, or has too many items, its checksum fails or it is of a newer format.
    """
    if value.numel() > MAX_RECORD_BYTES + len(_MAGIC) + _DIGEST:
        raise CheckpointError(
            f"the record '{where}' has {value.numel():,} bytes; at most {MAX_RECORD_BYTES:,} are read"
        )
    # The checksum goes before the parser: nothing of a changed record is believed, not even its format version.
    raw = as_bytes(value).numpy().tobytes()
    text = raw[len(_MAGIC) + _DIGEST :]
    if hashlib.sha256(text).digest() != raw[len(_MAGIC) : len(_MAGIC) + _DIGEST]:
        raise CheckpointError(
            f"the checksum of the record '{where}' fails: the file is damaged, or a tool changed the record's "
            "bytes; take an earlier checkpoint, or give the expanded model: load(path, model=giant)"
        )
    if (items := _items(text)) > MAX_RECORD_ITEMS:
        raise CheckpointError(f"the record '{where}' has {items:,} items; at most {MAX_RECORD_ITEMS:,} are read")
    try:
        payload = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the record '{where}' is no JSON: {error}") from None
    if not isinstance(payload, dict) or type(payload.get("format")) is not int or payload["format"] < 1:
        raise CheckpointError(f"the record '{where}' has no format version")
    if payload["format"] > RECORD_FORMAT:
        raise CheckpointError(
            f"the record '{where}' has format {payload['format']}, but this nbcompile reads up to {RECORD_FORMAT}: "
            "upgrade it"
        )
    return payload


def _items(text: bytes) -> int:
    """At least as many as the lists and dicts of ``text`` hold, and they themselves, known before it is parsed."""
    return sum(map(text.count, (b",", b"[", b"{")))


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")
