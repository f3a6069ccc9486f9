"""First floor: one rewrite per file. These tables are the only place that knows their names and order."""

if __name__ != "nbcompile.passes":
    raise ImportError("import nbcompile.passes: the bare name 'passes' would load a second copy")

from nbcompile.passes.absorb_bias import AbsorbBias as AbsorbBias
from nbcompile.passes.base import Pass as Pass
from nbcompile.passes.base import PassResult as PassResult
from nbcompile.passes.base import Skip as Skip
from nbcompile.passes.contract_sites import ContractSites as ContractSites
from nbcompile.passes.equalize import Equalize as Equalize
from nbcompile.passes.expand_sites import ExpandSites as ExpandSites
from nbcompile.passes.merge_affine import MergeAffine as MergeAffine
from nbcompile.passes.merge_common import MergeCommon as MergeCommon
from nbcompile.passes.merge_shared import MergeShared as MergeShared
from nbcompile.passes.remove_identity import RemoveIdentity as RemoveIdentity
from nbcompile.passes.remove_unread import RemoveUnread as RemoveUnread

PASSES: dict[str, type[Pass]] = {
    cls.name: cls
    for cls in (
        *(ExpandSites, ContractSites, RemoveIdentity, RemoveUnread, MergeCommon),
        *(MergeShared, MergeAffine, Equalize, AbsorbBias),
    )
}

# Pipelines: `nbcompile.pass_runner.run_pipeline` builds their passes and runs them in this order. `expand-sites` and
# `contract-sites` are in none: each is a verb by itself, whose layers go back into the user's own class.
FUSE = (  # makes the deploy form
    "remove-identity",  # before merging, which follows values from node to node
    "remove-unread",  # before merging, which leaves alone what has several readers
    "merge-common",  # before the next, which leaves alone what is called several times
    "merge-shared",  # before merging, which leaves alone what is called several times
    "merge-affine",
)
DEVICE = (  # on the deploy form, for .tflite files
    "equalize",  # before the biases go: they bound its factors
    "absorb-bias",
)
