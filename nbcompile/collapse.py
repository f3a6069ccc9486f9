"""``collapse_``: the linear phase of training in weight space."""

import logging

from torch import nn
from torch.utils._pytree import tree_leaves

from nbcompile.core.blocks import sites
from nbcompile.core.errors import PreconditionError
from nbcompile.core.example import inputs_for, origin_of, random_inputs, specs
from nbcompile.core.judging.block_proof import Stand, require_same_blocks
from nbcompile.core.tracing.inputs import batch_of
from nbcompile.core.wrappers import require_loaded, unwrap
from nbcompile.wide.giants import refuse_wide

log = logging.getLogger("nbcompile")


def collapse_(giant: nn.Module, *, proof: bool = True) -> nn.Module:
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
        proof: run a copy in eval mode, on inputs as the giant remembers them and on a larger batch where it takes one,
            and compare each block that they reach with its layer, before anything is changed.

    Returns:
        ``giant`` itself.

    Raises:
        PreconditionError: if it is a giant in width or has no blocks, a slope is below 1, or it does not run on what it
            remembers.
        PostconditionError: if a block is not the layer; it is named. Nothing is changed in either case.

    Source: OREPA (Hu et al. 2022, arXiv 2204.00826) and SESR (Bhardwaj et al. 2022, arXiv 2103.09404) train linear
    blocks so.
    """
    model = unwrap(giant)
    blocks = sites(model)
    refuse_wide(model, "collapse_", "weight space is for giants of expand alone; train it at its widths, and fuse it")
    if not blocks:
        raise PreconditionError(f"collapse_: {type(model).__name__} has no expansion blocks; expand it first")
    require_loaded(model, "collapse_")
    if bent := {name: block for name, block in blocks.items() if not block.linear}:
        name, block = next(iter(bent.items()))
        raise PreconditionError(
            f"collapse_: {len(bent)} of {len(blocks)} sites are not linear yet: '{name}' has slope "
            f"{float(block.slope):.6g}, not 1.0, so its block is not one layer; train on with PLT until it is done"
        )
    if proof and not all(block.collapsed for block in blocks.values()):
        _prove(model)
    for block in blocks.values():
        block.collapsed = True
    return giant


def _prove(model: nn.Module) -> None:
    if origin_of(model) is None:
        log.warning("collapse_: not proven by running it, for want of an example input")
        return
    example = inputs_for(model, None, who="collapse_")
    more = random_inputs(specs(example), seed=1, batch=batch_of(tree_leaves(example)) + 1)
    cases = (example, inputs_for(model, more, who="collapse_"))
    require_same_blocks(model, lambda _, block: Stand(block.as_one_layer), cases, "collapse_")
