"""Another view of each image for the teacher."""

from typing import Any

from nbcompile.core.errors import UsageError
from nbcompile.training.batch import OTHER_VIEW
from nbcompile.training.data.base import ImagesOver


class TwoViews(ImagesOver):
    """A set whose images come twice, each time augmented anew.

    Args:
        images: the set.
    """

    def __getitem__(self, indices: list[int]) -> Any:
        """Images, labels and, by name, the same images once more: see `nbcompile.training.batch.Batch`."""
        own, other = self.images[indices], self.images[indices]
        if isinstance(own, UsageError) or isinstance(other, UsageError):
            return own if isinstance(own, UsageError) else other
        return own[0], own[1], {OTHER_VIEW: other[0]}
