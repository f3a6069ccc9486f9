"""The weights of torchvision and timm, where a MODEL asks for them: ``timm:resnet18?pretrained=true``.

They are read from the library's own cache, and downloaded into it once. A download is not begun before its server has
answered: huggingface_hub alone would try for three quarters of a minute to find that there is no network.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from torch import hub, nn

from nbcompile.core.errors import CheckpointError, UsageError
from nbcompile.spec_strings import said

PATIENCE = 10.0
"""Seconds that a server has to answer."""


def wants_weights(spec: str, options: dict[str, Any]) -> bool:
    """The option ``pretrained``, which is taken out of ``options``.

    Raises:
        UsageError: if it is neither true nor false.
    """
    pretrained = options.pop("pretrained", False)
    if not isinstance(pretrained, bool):
        raise UsageError(f"'{spec}': pretrained is true or false, not '{pretrained}'")
    return pretrained


def torchvision_weights(spec: str, models: ModuleType, name: str, options: dict[str, Any]) -> Any:
    """The member of torchvision's enumeration that ``options`` name, which are taken out of them; None: no weights.

    Args:
        spec: the MODEL, for errors.
        models: ``torchvision.models``.
        name: of the builder.
        options: ``pretrained`` (true is ``DEFAULT``) or ``weights`` (the name of a member); others stay.

    Raises:
        UsageError: if there are none, or none of that name.
    """
    named = options.pop("weights", None)
    if wants_weights(spec, options):
        named = named or "DEFAULT"
    if named is None:
        return None
    known = models.get_model_weights(name).__members__
    if not known:
        raise UsageError(f"'{spec}': torchvision has no weights of '{name}'")
    if str(named) not in known:
        raise UsageError(f"'{spec}': there are no weights '{named}' of '{name}'; there are {', '.join(known)}")
    return known[named]


def fetch_torchvision(spec: str, weights: Any) -> None:
    """Make sure that the file of ``weights`` is in torch's cache, and can be read.

    Raises:
        CheckpointError: if it is not.
    """
    file = Path(hub.get_dir()) / "checkpoints" / Path(urlsplit(weights.url).path).name
    if not file.exists():
        _require_answer(spec, weights.url, file)
    try:
        weights.get_state_dict(progress=False, check_hash=True)
    except Exception as error:
        raise CheckpointError(f"'{spec}': its weights in {file} cannot be read: {said(error)}") from error


def preprocessing_of(weights: Any) -> dict[str, Any]:
    """How images become inputs, as the weights were trained: in the words of `nbcompile.deploy.calibration_images`."""
    made = weights.transforms()
    if not hasattr(made, "mean"):
        return {}
    preprocessing = {"scale": 1 / 255, "mean": tuple(made.mean), "std": tuple(made.std)}
    preprocessing["interpolation"] = made.interpolation.value
    if hasattr(made, "crop_size") and len(made.crop_size) == 1:
        preprocessing["crop"] = made.crop_size[0] / made.resize_size[0]
    return preprocessing


def timm_weights(spec: str, create: Callable[[], nn.Module]) -> nn.Module:
    """What ``create`` makes, with its weights from timm's cache, or downloaded into it.

    Args:
        spec: the MODEL, for errors.
        create: makes the network, pretrained; without weights it is known to work.

    Raises:
        CheckpointError: if they cannot be had, or do not fit.
    """
    from huggingface_hub import constants  # timm's own way to its weights

    try:
        with _only_cached(constants):
            try:
                return create()
            except OSError:  # of any kind: what is not there is said in many ways
                pass
        if not constants.HF_HUB_OFFLINE:
            _require_answer(spec, constants.ENDPOINT, Path(constants.HF_HUB_CACHE))
        return create()
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"'{spec}': its weights cannot be had: {said(error)}") from error


@contextmanager
def _only_cached(constants: Any) -> Iterator[None]:
    """Inside, huggingface_hub asks no server."""
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _require_answer(spec: str, url: str, where: Path) -> None:
    """Raise CheckpointError if nobody answers at ``url``, from which the weights would come to ``where``."""
    try:
        urlopen(Request(url, method="HEAD"), timeout=PATIENCE).close()
    except HTTPError:
        return  # an answer, if not the one that was hoped for: the library says more
    except OSError as error:
        raise CheckpointError(
            f"'{spec}' needs weights that are not in the cache ({where}), and {urlsplit(url).netloc} cannot be reached "
            f"({getattr(error, 'reason', error)}): connect to the network once, or bring them there; without "
            "pretrained weights nothing is downloaded"
        ) from error
