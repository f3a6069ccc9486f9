from pathlib import Path

import pytest
import torch
from torch import nn

from nbcompile import NBCompileError
from nbcompile.training import Event, Stepped, TrainConfig
from nbcompile.training.begin import set_up
from nbcompile.training.data.load import load_data
from nbcompile.training.engine import start_fabric
from nbcompile.training.epoch_meter import Meter
from nbcompile.training.outputs.run_folder import RunFolder
from nbcompile.training.session import Session

LOSSES = [2.0, 1.5, 1.0, 0.5, 0.25]


@pytest.fixture
def told() -> list[Event]:
    return []


@pytest.fixture
def session(net: nn.Module, tmp_path: Path, told: list[Event]) -> Session:
    config = TrainConfig(method="vanilla", epochs=2, accelerator="cpu")
    return set_up(start_fabric(config), config, net, load_data(config), RunFolder(tmp_path), None, told.append)


def feed(meter: Meter, session: Session, losses: list[float]) -> None:
    for loss in losses:
        session.step += 1
        meter.add(0.1 * session.step, torch.tensor(loss), torch.tensor(session.step), 10)


@pytest.mark.parametrize(("every", "bunches"), [(None, [1, 2, 3, 4, 5]), (2, [0, 2, 2, 4, 4]), (9, [0, 0, 0, 0, 0])])
def test_steps_are_told_in_order_however_they_are_fetched(
    session: Session, told: list[Event], every: int | None, bunches: list[int]
) -> None:
    meter, seen = Meter(session, 1, every), []
    for loss in LOSSES:
        feed(meter, session, [loss])
        seen.append(len(told))
    assert seen == bunches
    assert meter.finish() == (pytest.approx(sum(LOSSES) / 5), pytest.approx((1 + 2 + 3 + 4 + 5) / 50))
    assert told == [
        Stepped(
            epoch=2,
            step=i + 1,
            loss=LOSSES[i],
            accuracy=sum(range(i + 2)) / (10 * (i + 1)),
            slope=None,
            lr=0.1 * (i + 1),
            phase="train",
        )
        for i in range(5)
    ]


def test_a_loss_that_is_not_finite_is_found_at_its_own_step(session: Session, told: list[Event]) -> None:
    meter = Meter(session, 0, every=4)
    feed(meter, session, [1.0, float("inf"), 1.0])
    with pytest.raises(
        NBCompileError, match=r"^the loss is inf at optimiser step 2 with learning rate 0.2: lower lr, "
    ):
        meter.finish()
    assert len(told) == 1
