"""First floor: one rewrite per file. This table is the only place that knows their names and order."""

if __name__ != "nbcompile.passes":
    raise ImportError("import nbcompile.passes: the bare name 'passes' would load a second copy")

from nbcompile.passes.absorb_bias import AbsorbBias as AbsorbBias
from nbcompile.passes.base import Pass as Pass
from nbcompile.passes.base import PassResult as PassResult
from nbcompile.passes.base import Skip as Skip
from nbcompile.passes.contract_sites import ContractSites as ContractSites
from nbcompile.passes.equalize import Equalize as Equalize
from nbcompile.passes.even_padding import EvenPadding as EvenPadding
from nbcompile.passes.expand_sites import ExpandSites as ExpandSites
from nbcompile.passes.merge_affine import MergeAffine as MergeAffine
from nbcompile.passes.remove_identity import RemoveIdentity as RemoveIdentity
from nbcompile.passes.split_channels import SplitChannels as SplitChannels

PASSES: dict[str, type[Pass]] = {
    cls.name: cls
    for cls in (
        *(ExpandSites, ContractSites, RemoveIdentity, MergeAffine),
        *(Equalize, AbsorbBias, EvenPadding, SplitChannels),
    )
}

EXPAND = ("expand-sites",)
FUSE = (
    "contract-sites",  # first: the original architecture is back, and everything after sees plain layers
    "remove-identity",  # before merging, which follows values from node to node
    "merge-affine",
)
DEVICE = (  # on the deploy form, for .tflite files; which of them run, nbcompile.deploy.to_device decides
    "equalize",  # first: the channel ranges that it is given are of the graph as it is
    "absorb-bias",
    "even-padding",
    "split-channels",  # last: it multiplies the layers that the others would have to know
)
