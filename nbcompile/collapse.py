"""``collapse_``: the linear phase of training in weight space."""

from torch import nn

from nbcompile.core.blocks import sites
from nbcompile.core.errors import PreconditionError
from nbcompile.core.wrappers import require_loaded, unwrap


def collapse_(giant: nn.Module) -> nn.Module:
    """Train the giant's linear blocks as one layer each, from now on.

    The weight and bias of that layer are composed from the block's own parameters at every call, so gradients reach
    each of them as through the block, and a step costs about what it costs the original. The inner norms are frozen:
    their running statistics stay what they are now (``num_batches_tracked`` too), in train mode as in eval mode, while
    their scales and shifts go on learning. The giant's output in eval mode does not change, up to rounding; in train
    mode it changes once, here, as far as the last batches' statistics differ from the running ones. Norms outside the
    blocks are not touched. Hooks on layers inside a block are not called any more.

    Keys and shapes of the ``state_dict`` stay, and the optimiser can go on with the parameters it has. Copies are
    collapsed, too; files do not say it: call this again after loading one. Loading a ``state_dict`` whose slopes are
    below 1 ends it.

    Args:
        giant: what ``expand`` returned, with slopes of 1, as it is or wrapped (DDP, ``torch.compile``); it is changed.
            A second call changes nothing.

    Returns:
        ``giant`` itself.

    Raises:
        PreconditionError: if it has no expansion blocks, or a slope is below 1; nothing is changed then.

    Source: OREPA (Hu et al. 2022, arXiv 2204.00826) and SESR (Bhardwaj et al. 2022, arXiv 2103.09404) train linear
    blocks so.
    """
    model = unwrap(giant)
    blocks = sites(model)
    if not blocks:
        raise PreconditionError(f"collapse_: {type(model).__name__} has no expansion blocks; expand it first")
    require_loaded(model, "collapse_")
    if bent := {name: block for name, block in blocks.items() if not block.linear}:
        name, block = next(iter(bent.items()))
        raise PreconditionError(
            f"collapse_: {len(bent)} of {len(blocks)} sites are not linear yet: '{name}' has slope "
            f"{float(block.slope):.6g}, not 1.0, so its block is not one layer; train on with PLT until it is done"
        )
    for block in blocks.values():
        block.collapsed = True
    return giant
