"""The right weights of those in a file, what is said of them, or a question."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nbcompile.core import record
from nbcompile.core.errors import CheckpointError
from nbcompile.core.serialization.choose_weights import Wanted, choose
from nbcompile.core.serialization.weight_sets import Weights, find

PATH = Path("a.pt")
HEAD = record.encode_record({"site": {"name": "a"}, "model": {}})
W = torch.zeros(2)


def test_the_average_is_taken_and_said() -> None:
    found = [Weights("state_dict", {}, "a"), Weights("state_dict_ema:module.", {}, "a"), Weights("optimizer", {})]
    chosen, note = choose(found, None, PATH)
    assert chosen is found[1]
    assert note == (
        "a.pt holds weights at 'state_dict', 'state_dict_ema:module.': "
        "'state_dict_ema:module.' was taken (--key chooses)"
    )
    for key in ("state_dict_ema", "state_dict_ema:module.", "state_dict_ema.module", "state_dict_ema.module."):
        assert choose(found, key, PATH) == (found[1], None)
    assert choose(found, "optimizer", PATH) == (found[2], None)
    with pytest.raises(
        CheckpointError, match=r"^a\.pt has no weights at 'x'; it has them at 'state_dict', 'state_dict_ema:module\.'$"
    ):
        choose(found, "x", PATH)


def test_the_set_that_fits_the_model_is_taken_without_its_prefix() -> None:
    state = [Weights(f"optimizer.{i}", {"exp_avg": W, "step": W, "a": W, "b": W}) for i in range(20)]
    found = [*state, Weights("net", {"module.w": W, "module.b.w": W})]
    chosen, note = choose(found, None, PATH, Wanted(["w", "b.w"]))
    assert (chosen.place, list(chosen.tensors), note) == ("net:module.", ["w", "b.w"], None)
    with pytest.raises(CheckpointError, match=r"at 'optimizer\.0', .*'optimizer\.7' and 13 more$"):
        choose(found, "x", PATH, Wanted(["other"]))


def test_a_damaged_set_is_refused_when_it_is_chosen() -> None:
    broken = HEAD.clone()
    broken[-2] ^= 1
    found = find({"model": {"a._extra_state": HEAD, "a.w": W}, "ema": {"a._extra_state": broken, "a.w": W}}, PATH)
    with pytest.raises(
        CheckpointError, match=r"^a\.pt: the checksum of .*; the weights at 'model' are sound \(--key\)$"
    ):
        choose(found, None, PATH)
    assert choose(found, "model", PATH)[0].described == "a._extra_state"


class Net(nn.Module):
    """A buffer, and a layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)
        self.again = self.b


def state(value: float, prefix: str = "") -> dict[str, Tensor]:
    """A whole state_dict; every number in it is ``value``."""
    return {f"{prefix}{key}": torch.full_like(x, value) for key, x in Net().state_dict().items()}


def parameters(value: float, prefix: str = "") -> dict[str, Tensor]:
    """The parameters alone, each under its first name."""
    return {f"{prefix}{key}": x.detach().fill_(value) for key, x in Net().named_parameters()}


def taken(content: Any, key: str | None = None) -> tuple[float, float, str | None]:
    """What the file gives for the weights and for the running mean of a `Net`, and what is said."""
    chosen, note = choose(find(content, PATH), key, PATH, Wanted.by(Net()))
    model = Net()
    model.load_state_dict(chosen.tensors)
    (weights,) = {float(x.detach()) for p in model.parameters() for x in p.flatten()}
    return weights, float(model.norm.running_mean[0]), note  # type: ignore[index]


BUFFERS = "is an average of the parameters alone: buffers are those of"


@pytest.mark.parametrize(
    ("content", "mean", "note"),
    [
        (
            {**state(1, "model."), **state(2, "ema_model.")},
            2,
            "holds weights at 'model', 'ema_model': 'ema_model' was taken (--key chooses)",
        ),
        (
            {"model": state(1), "ema": {**state(3, "online_model."), **state(2, "ema_model."), "step": torch.ones(())}},
            2,
            "holds weights at 'model', 'ema:online_model.', 'ema:ema_model.': 'ema:ema_model.' was taken "
            "(--key chooses)",
        ),
        (
            {**state(1), **state(2, "ema.")},
            2,
            "holds weights at '', 'ema': 'ema' was taken (--key chooses)",
        ),
        (
            {"model": state(1), "ema": parameters(2)},
            1,
            f"holds weights at 'model', 'ema': 'ema' was taken (--key chooses); 'ema' {BUFFERS} 'model'",
        ),
        (
            {"model": state(1), "ema": {"shadow_params": [*parameters(2).values()], "collected_params": [W]}},
            1,
            "holds weights at 'model', 'ema.shadow_params': 'ema.shadow_params' was taken (--key chooses); "
            f"'ema.shadow_params' {BUFFERS} 'model'",
        ),
        (
            {**state(1, "net."), **parameters(2, "model_ema.module.")},
            1,
            "holds weights at 'net', 'model_ema.module': 'model_ema.module' was taken (--key chooses); "
            f"'model_ema.module' {BUFFERS} 'net'",
        ),
    ],
)
def test_the_average_is_found_wherever_it_stands(content: Any, mean: float, note: str) -> None:
    assert taken(content) == (2, mean, f"a.pt {note}")


@pytest.mark.parametrize(
    ("average", "why"),
    [
        ({"shadow_params": [*parameters(2).values()][1:]}, "it has 5 tensors, and the network 6 parameters"),
        ({"shadow_params": [*parameters(2).values()][::-1]}, "its 'a.weight' has another shape"),
        ({key: x for key, x in parameters(2).items() if key != "b.bias"}, "it lacks 'b.bias'"),
    ],
)
def test_an_average_that_does_not_fit_is_not_passed_over_in_silence(average: Any, why: str) -> None:
    place = "ema.shadow_params" if "shadow_params" in average else "ema"
    found = taken({"model": state(1), "ema": average})
    assert found == (1, 1, f"a.pt: what is at '{place}' was not taken: {why}")


@pytest.mark.parametrize(
    ("content", "places"),
    [
        ({**state(1, "teacher."), **state(2, "student.")}, ("teacher", "student")),
        ({"last": state(1), "best": state(2)}, ("last", "best")),
        ({"model": state(0), "ema_slow": state(1), "ema_fast": state(2)}, ("ema_slow", "ema_fast")),
    ],
)
def test_of_two_equals_a_question(content: Any, places: tuple[str, str]) -> None:
    sentence = (
        rf"^a\.pt holds 2 sets of weights that fit, at '{places[0]}', '{places[1]}': say which is meant, "
        rf"as in --key '{places[0]}' \(key=… in Python\)$"
    )
    with pytest.raises(CheckpointError, match=sentence):
        taken(content)
    assert [taken(content, key) for key in places] == [(1, 1, None), (2, 2, None)]


def test_the_same_weights_twice_are_no_question() -> None:
    note = "a.pt holds weights at 'model', 'compiled': 'model' was taken (--key chooses)"
    assert taken({**state(1, "model."), **state(1, "compiled._orig_mod.")}) == (1, 1, note)


def test_an_optimizers_moments_are_no_weights() -> None:
    assert taken({"optimizer": {"exp_avg": state(1)}, "model": state(2)}) == (2, 2, None)


def test_a_place_inside_another_can_be_asked_for() -> None:
    content = {"ema": {**state(1, "online_model."), **state(2, "ema_model.")}}
    assert taken(content, "ema")[0] == taken(content, "ema.ema_model")[0] == 2
    assert taken(content, "ema.online_model")[0] == 1
