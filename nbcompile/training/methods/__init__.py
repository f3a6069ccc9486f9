"""The table of training methods."""

from nbcompile.training.methods.base import Method
from nbcompile.training.methods.distillation import KD, NetBoosterKD
from nbcompile.training.methods.netbooster import NetBooster
from nbcompile.training.methods.vanilla import Vanilla

METHODS: dict[str, type[Method]] = {method.name: method for method in (Vanilla, NetBooster, KD, NetBoosterKD)}

__all__ = ["METHODS", "Method"]
