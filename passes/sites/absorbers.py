"""Where the shift of a contracted layer can go when the layer has no bias: into the norms that read it.

    norm(layer(x) + shift)     =>     norm'(layer(x)),    mean' = mean - shift

Decided at expand, so that fuse never finds out after days of training; fuse may ask again.
"""

from collections.abc import Sequence

from torch import fx, nn
from torch.nn import functional as F

from nbcompile.core.graph.nodes import calls, module_of, norm_of, readers
from nbcompile.core.graph.owners import Owners
from nbcompile.core.layers import LayerSpec
from nbcompile.core.running import tensors_of
from nbcompile.core.tracing.capture import opaque
from nbcompile.core.tracing.observe import is_observed
from nbcompile.core.tracing.pieces import Piece

_SYNC_OR_CALL = (nn.SyncBatchNorm, type(None))  # F.batch_norm is no module
_NORMS = {
    1: (nn.BatchNorm1d, *_SYNC_OR_CALL),
    2: (nn.BatchNorm2d, *_SYNC_OR_CALL),
    3: (nn.BatchNorm3d, *_SYNC_OR_CALL),
}


def absorbers(owners: Owners, spec: LayerSpec, nodes: list[fx.Node], parts: Sequence[Piece] = ()) -> tuple[str, ...]:
    """Keys of the running means that can take a layer's shift: all its readers' are, and only theirs; else none.

    None either for a linear layer (behind more than one leading dimension a norm normalises another axis). Where the
    graph shows only one of the paths that the model can take, a piece that holds the layer must say the same.

    Args:
        owners: of the graph.
        spec: of the layer.
        nodes: every call of the layer, or of what stands for it.
        parts: the pieces of the model whose one run ``gm`` shows, found by that run.
    """
    gm, keys = owners.gm, _keys(owners, spec, nodes)
    if not keys or not is_observed(gm):
        return keys
    layer, means = gm.get_submodule(str(nodes[0].target)), {id(gm.get_buffer(key)) for key in keys}
    for part in parts:
        inside = calls(part.graph).get(layer, [])
        hidden = {id(x) for module in opaque(part.graph).values() for x in tensors_of(module)}
        if inside and not hidden & (means | set(map(id, layer.parameters()))):
            proven = {id(part.graph.get_buffer(key)) for key in _keys(Owners(part.graph), spec, inside)}
            return keys if proven == means else ()
    return ()


def _keys(owners: Owners, spec: LayerSpec, nodes: list[fx.Node]) -> tuple[str, ...]:
    if not spec.axes:
        return ()
    gm, own = owners.gm, set(nodes)
    keys: dict[str, None] = {}
    for node in nodes:
        for reader in readers(node):
            norm = norm_of(gm, reader)
            if norm is None or norm.running_mean is None or reader.all_input_nodes[0] is not node:
                return ()
            mean = owners.buffers.get(norm.running_mean)
            if (
                mean is None
                or mean.shape != (spec.outputs,)
                or not isinstance(module_of(gm, reader), _NORMS[spec.axes])
            ):
                return ()
            keys[norm.running_mean] = None
    for key in keys:
        if any(node.all_input_nodes[0] not in own for node in owners.means[key]):
            return ()
        if any(_read_elsewhere(node, own) for node in owners.reads.get(id(owners.buffers[key]), ())):
            return ()
    return tuple(keys)


def _read_elsewhere(buffer: fx.Node, sources: set[fx.Node]) -> bool:
    """Whether something reads ``buffer`` that is no norm right behind one of ``sources``."""
    return any(user.target is not F.batch_norm or user.all_input_nodes[0] not in sources for user in buffer.users)
