import pytest

from nbcompile.core.errors import UsageError
from nbcompile.exporters.to_tflite.targets.boards import BOARDS, board, why_over_budget


def test_every_board_is_whole() -> None:
    assert len(BOARDS) >= 10
    for name, found in BOARDS.items():
        assert (found.name, found.name.lower()) == (name, name)
        assert 0 < found.block <= found.sram < found.flash
        assert found.title
        assert found.source


def test_boards_are_found_by_name() -> None:
    assert board("Pico").sram == 270_336
    assert board("b-l475e-iot01a").block == 98_304  # its 128 KB are in two places


def test_unknown_boards_get_a_sentence() -> None:
    with pytest.raises(UsageError) as raised:
        board("pico2")
    assert str(raised.value) == (
        "the board 'pico2' is not in the table (did you mean pico-2?): it has pico, pico-2, esp32-s3, "
        "nano-33-ble-sense, sparkfun-edge, b-l475e-iot01a, stm32f412g-disco, stm32f746g-disco, nucleo-h743zi, "
        "portenta-h7, teensy-4.1; for another board give its memory with --sram and --flash"
    )
    with pytest.raises(UsageError, match=r"'zzz' is not in the table: it has"):
        board("zzz")


@pytest.mark.parametrize(
    ("sram", "flash", "reason"),
    [
        (None, None, None),
        (1000, 2000, None),  # exactly enough
        (999, None, "the tensor arena takes 1,000 B, 1 B more than the 999 B of SRAM"),
        (None, 500, "the file takes 2,000 B, 1,500 B more than the 500 B of flash"),
        (
            900,
            1999,
            "the tensor arena takes 1,000 B, 100 B more than the 900 B of SRAM, and the file takes 2,000 B, 1 B more "
            "than the 1,999 B of flash",
        ),
    ],
)
def test_budgets(sram: int | None, flash: int | None, reason: str | None) -> None:
    assert why_over_budget(1000, 2000, sram, flash) == reason
