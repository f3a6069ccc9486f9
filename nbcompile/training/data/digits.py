"""The handwritten digits that scikit-learn bundles: 1,797 real 8×8 grey images, no download.

Split once and for all into 1,437 for training and 360 for measuring, each class in proportion.

Source: Alpaydin and Kaynak 1998, UCI, "Optical Recognition of Handwritten Digits" (its test part).
"""

import torch

from nbcompile.core.errors import missing_extra
from nbcompile.training.data.base import Data
from nbcompile.training.data.in_memory import tensor_data

HELD_OUT = 360
SPLIT_SEED = 0
WHITE = 16  # pixels are counts of 4×4 cells: 0 to 16


def load_digits(size: int | None = None, augment: str = "light") -> Data:
    """The digits, scaled to zero mean and unit variance of the training part, shifted by up to a pixel to train on.

    Args:
        size: side of the images, in pixels; None is their own, 8.
        augment: as in `nbcompile.training.options.data`.

    Raises:
        UsageError: if scikit-learn is not installed, or digits cannot be augmented so.
    """
    try:
        from sklearn.datasets import load_digits as bundled
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise missing_extra("train", "training on digits", "scikit-learn") from error
    raw = bundled()
    pixels = torch.from_numpy(raw.images).byte().unsqueeze(1)
    labels = torch.from_numpy(raw.target).long()
    train, val = train_test_split(range(len(labels)), test_size=HELD_OUT, random_state=SPLIT_SEED, stratify=raw.target)
    return tensor_data(
        "digits",
        (pixels[train], labels[train]),
        (pixels[val], labels[val]),
        tuple(str(name) for name in raw.target_names),
        scale=1 / WHITE,
        size=size,
        mirror=False,
        augment=augment,
    )
