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

FORMAT = 1
MAX_BYTES = 64 * 2**20
_MAGIC = b"nbcompile"
_DIGEST = hashlib.sha256().digest_size


def encode(payload: dict[str, Any]) -> Tensor:
    """``payload`` as a 1-dim uint8 tensor.

    Raises:
        CheckpointError: if it would be larger than :data:`MAX_BYTES`.
    """
    text = json.dumps({"format": FORMAT, **payload}, separators=(",", ":"), allow_nan=False).encode()
    if len(text) > MAX_BYTES:
        raise CheckpointError(f"the record would have {len(text):,} bytes; at most {MAX_BYTES:,} are written")
    return torch.frombuffer(bytearray(_MAGIC + hashlib.sha256(text).digest() + text), dtype=torch.uint8)


def is_record(value: object) -> bool:
    """Whether ``value`` looks like a record: a vector of bytes (of any dtype) that starts with the magic word."""
    head = len(_MAGIC)
    if not isinstance(value, Tensor) or value.ndim != 1 or value.numel() < head or value.is_complex():
        return False
    return bytes(int(b) % 256 for b in value[:head].round().tolist()) == _MAGIC


def decode(value: Tensor, where: str) -> dict[str, Any]:
    """The payload of a record.

    Args:
        value: what :func:`encode` gave, perhaps cast to another dtype and back.
        where: the key it stood under, named in errors.

    Raises:
        CheckpointError: if it is too large, its checksum fails or it is of a newer format.
    """
    if value.numel() > MAX_BYTES + len(_MAGIC) + _DIGEST:
        raise CheckpointError(f"the record '{where}' has {value.numel():,} bytes; at most {MAX_BYTES:,} are read")
    raw = value.round().to(torch.uint8).cpu().numpy().tobytes()
    text = raw[len(_MAGIC) + _DIGEST :]
    if hashlib.sha256(text).digest() != raw[len(_MAGIC) : len(_MAGIC) + _DIGEST]:
        raise CheckpointError(
            f"the checksum of the record '{where}' fails: the file is damaged, or a tool changed the record's "
            "bytes; take an earlier checkpoint, or load the weights into the expanded model in Python"
        )
    try:
        payload = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the record '{where}' is no JSON: {error}") from None
    if not isinstance(payload, dict) or not isinstance(payload.get("format"), int):
        raise CheckpointError(f"the record '{where}' has no format version")
    if payload["format"] > FORMAT:
        raise CheckpointError(
            f"the record '{where}' has format {payload['format']}, but this nbcompile reads up to {FORMAT}: upgrade it"
        )
    return payload
