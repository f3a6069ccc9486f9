"""Which of the weights in a file are meant: the average, and said so; else the only ones that fit; else a question."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nbcompile.core.errors import CheckpointError
from nbcompile.core.record import decode_record
from nbcompile.core.serialization.weight_sets import IN_ONE_DICT, Weights, below, fitting, unusable

_SHOWN = 8
"""Places in a sentence."""


@dataclass(frozen=True)
class Wanted:
    """What is known of the model that is to take the weights.

    Attributes:
        keys: of its state_dict.
        parameters: its parameters in order: the first key of each, and all of them.
    """

    keys: Sequence[str] = ()
    parameters: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def by(cls, model: nn.Module) -> "Wanted":
        """By a model."""
        keys: dict[int, list[str]] = {}
        for key, parameter in model.named_parameters(remove_duplicate=False):
            keys.setdefault(id(parameter), []).append(key)
        return cls([*model.state_dict()], {names[0]: names for names in keys.values()})

    @classmethod
    def by_record(cls, description: Any) -> "Wanted":
        """By the description of a model in a file, which may hold anything."""
        description = description if isinstance(description, dict) else {}
        shared = description.get("shared")
        keys: dict[str, list[str]] = {}
        for key in _names(description.get("parameters")):
            first = shared.get(key, key) if isinstance(shared, dict) else key
            keys.setdefault(str(first), []).append(key)
        return cls(_names(description.get("keys")), keys)


NOTHING = Wanted()


def choose(
    sets: Sequence[Weights], key: str | None, path: Path, wanted: Wanted = NOTHING
) -> tuple[Weights, str | None]:
    """The weights to take from a file, and a sentence about it where there was a choice.

    An average is taken before what it is an average of. One of the parameters alone gets the buffers of the weights
    beside it, as where such averages are kept and measured.

    Args:
        sets: from `nbcompile.core.serialization.weight_sets.find`.
        key: a place, as the user wrote it; None takes what the rule above says.
        path: for the messages.
        wanted: sets that hold all its keys are preferred, and what stands before them (``module.``, ``model.``) is
            dropped.

    Raises:
        CheckpointError: if ``key`` names none (the places are listed), no rule says which of several is
            meant (their keys are listed), or the records of the chosen set are damaged.
    """
    dicts = [w for w in sets if not w.listed]
    plain = _no_optimizers([*fitting(dicts, wanted.keys)])
    likely = _no_optimizers([w for w in dicts if w.described or w.damaged]) or plain
    known, remarks = bool(likely), list[str]()
    if known:
        averages, remarks = _averages(likely, sets, wanted)
        likely += averages
    else:
        likely = sorted(dicts, key=lambda w: -len(w.tensors))  # an optimiser's sets are small and many
    told = [*likely, *(w for w in plain if all(w.place != other.place for other in likely))]
    if key is not None:
        named = next(filter(None, ([w for w in some if w.is_called(key)] for some in (told, dicts))), None)
        if named is None:
            raise CheckpointError(f"{path} has no weights at '{key}'; it has them at {_places(likely)}")
        exact = [w for w in named if key in (w.place, w.name)]
        chosen, remarks = _ruled(exact or named, path, known), []
    else:
        chosen = _ruled(likely, path, known)
        if len(told) > 1:
            remarks.insert(0, f"holds weights at {_places(told)}: '{chosen.name}' was taken (--key chooses)")
    if chosen.completed:
        remarks.append(
            f"'{chosen.name}' is an average of the parameters alone: buffers are those of '{chosen.completed}'"
        )
    return _sound(chosen, likely, path, wanted), _said(path, remarks)


def _ruled(candidates: list[Weights], path: Path, known: bool) -> Weights:
    """The one to take: an average, if there is any; of equal ones the first.

    Raises:
        CheckpointError: where several are left that fit the model, if that is known.
    """
    first, *more = [w for w in candidates if w.averaged] or candidates
    others = [w for w in more if not w.equals(first)] if known else []
    if others:
        raise CheckpointError(
            f"{path} holds {len(others) + 1} sets of weights that fit, at {_places([first, *others])}: say which is "
            f"meant, as in --key '{first.name}' (key=… in Python)"
        )
    return first


def _averages(likely: list[Weights], sets: Sequence[Weights], wanted: Wanted) -> tuple[list[Weights], list[str]]:
    """Averages of parameters alone, completed with what they are an average of; and why others are not taken."""
    taken = {id(value) for w in likely for value in w.tensors.values()}
    found = [w for w in _called_averages(sets) if not taken & {id(value) for value in w.tensors.values()}]
    live = [w for w in likely if not w.averaged]
    if not found or not live or any(not w.equals(live[0]) for w in live[1:]):
        return [], []
    base = live[0]
    if base.described is not None:
        wanted = Wanted.by_record(decode_record(base.tensors[base.described], base.described)["model"])
    averages, remarks = list[Weights](), list[str]()
    for average in found:
        whole = _completed(average, base, wanted.parameters)
        if isinstance(whole, Weights):
            averages.append(whole)
        else:
            remarks.append(f"what is at '{average.name}' was not taken: {whole}")
    return averages, remarks


def _called_averages(sets: Sequence[Weights]) -> Iterator[Weights]:
    """The dicts, groups of keys in a dict, and lists whose name says that they are an average."""
    yield from (w for w in sets if w.listed)
    for raw in {
        id(w.around): Weights(w.place.partition(":")[0], dict(w.around)) for w in sets if not w.listed
    }.values():
        heads = dict.fromkeys(f"{key.partition('.')[0]}." for key in raw.tensors if "." in key)
        if raw.averaged and raw.tensors:
            yield raw
        elif not raw.averaged:
            named = [head for head in heads if Weights(f"{raw.place}:{head}", {}).averaged]
            yield from (below(raw.place, raw.tensors, head, None, ()) for head in named[:IN_ONE_DICT])


def _completed(average: Weights, base: Weights, parameters: Mapping[str, Sequence[str]]) -> Weights | str:
    """``base`` with the parameters of ``average``; or why that is not an average of it."""
    if not parameters:
        return f"which of the weights at '{base.name}' are parameters is not known"
    if average.listed and len(average.tensors) != len(parameters):
        return f"it has {len(average.tensors)} tensors, and the network {len(parameters)} parameters"
    if average.listed:
        average = replace(average, tensors=dict(zip(parameters, average.tensors.values(), strict=True)))
    fit = next((w for w in fitting([average], [*parameters]) if w.averaged), None)
    if fit is None:
        lacking = next((name for name in parameters if name not in average.tensors), "")
        return f"it lacks '{lacking}'"
    if other := next((name for name in parameters if not _is_like(fit.tensors[name], base.tensors.get(name))), None):
        return f"its '{other}' has another shape"
    more = {key: value for key, value in fit.tensors.items() if _is_like(value, base.tensors.get(key))}  # running means
    named = {key: fit.tensors[name] for name, keys in parameters.items() for key in keys}
    return replace(base, place=fit.place, tensors={**base.tensors, **more, **named}, completed=base.name or "the root")


def _is_like(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and one.shape == other.shape


def _no_optimizers(sets: list[Weights]) -> list[Weights]:
    """``sets`` without those of optimisers, whose moments may have the names of the parameters."""
    return [w for w in sets if not w.of_optimizer] or sets


def _sound(chosen: Weights, likely: list[Weights], path: Path, wanted: Wanted) -> Weights:
    """The chosen set, or the expanded model's own weights in it, where records are damaged.

    Raises:
        CheckpointError: if they are, or if a tensor is none that a network has.
    """
    if chosen.damaged is not None:
        fit = next(fitting([chosen], wanted.keys), None)
        if fit is None:
            sound = next((f"; the weights at '{w.name}' are sound (--key)" for w in likely if not w.damaged), "")
            raise CheckpointError(f"{path}: {chosen.damaged}{sound}")
        chosen = fit  # the expanded model itself is at hand, and needs no record
    if wrong := next((name for name, value in chosen.tensors.items() if unusable(value)), None):
        raise CheckpointError(f"{path}: '{wrong}' is no plain tensor with data of its own size")
    return chosen


def _said(path: Path, remarks: Sequence[str]) -> str | None:
    text = "; ".join(remarks)
    return f"{path} {text}" if text.startswith("holds ") else f"{path}: {text}" if text else None


def _places(sets: Sequence[Weights]) -> str:
    more = f" and {len(sets) - _SHOWN} more" if sets[_SHOWN:] else ""
    return ", ".join(f"'{w.name}'" for w in sets[:_SHOWN]) + more


def _names(value: Any) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []
