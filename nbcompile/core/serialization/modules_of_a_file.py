"""The modules that a file describes: of each kind one is made, the others are copies of it."""

import json
from collections.abc import Hashable, Mapping
from typing import Any

from torch import Tensor, nn

from nbcompile.core.blocks import Expanded
from nbcompile.core.copies import copied
from nbcompile.core.serialization.bounds import bounded
from nbcompile.core.serialization.module_json import module_from_json, resize
from nbcompile.core.serialization.weight_files import EXTRA
from nbcompile.core.site_spec import SiteSpec


class Modules:
    """Modules on ``meta``, in eval mode.

    Args:
        described: what a file says of each, by name.
        tensors: the file's: blocks are made of the records among them.
        notes: gets a sentence where a size is changed to that of the file's tensors.

    Attributes:
        made: by name.
        kinds: what is equal of two modules that were made alike, whatever their tensors are.

    Raises:
        CheckpointError: if one is malformed or forbidden.
    """

    def __init__(self, described: Mapping[str, Any], tensors: Mapping[str, Tensor], notes: list[str]) -> None:
        self.made: dict[str, nn.Module] = {}
        self.kinds: dict[nn.Module, Hashable] = {}
        self._blocks: dict[SiteSpec, Expanded] = {}
        self._others: dict[str, nn.Module] = {}
        for name, data in described.items():
            key = f"{name}.{EXTRA}"
            if key in tensors:
                made, kind = self._block(tensors[key], key)
            else:
                made, kind = self._other(data)
                made = resize(name, made, tensors, notes)
            self.made[name], self.kinds[made] = made, kind

    def _block(self, record: Tensor, key: str) -> tuple[nn.Module, Hashable]:
        with bounded():
            block = Expanded.from_record(record, key, known=self._blocks).eval()
        return block, block.spec.kind

    def _other(self, data: Any) -> tuple[nn.Module, Hashable]:
        kind = json.dumps(data)
        if kind not in self._others:
            self._others[kind] = module_from_json(data)
        if isinstance(self._others[kind], nn.RNNBase):  # it has weak references to its own weights
            return module_from_json(data), kind
        return copied(self._others[kind]), kind
