"""A table of options, and what is made of it."""

import inspect
from dataclasses import dataclass

from nbcompile.core.options import BELOW_1, NOT_NEGATIVE, POSITIVE, SHARE, documented, keywords_of, option, options_of


@documented
@dataclass(frozen=True, kw_only=True)
class Oven:
    """How to bake.

    Source: grandmother.
    """

    heat: float = option(180.0, "Of the oven; see --rack-height", panel="Kitchen", bound=POSITIVE)
    rack: str = option("middle", "Where it stands", metavar="RACK", choices=("top", "middle", "low"))
    hours: int | None = option(None, "How long", panel="Time", unset="as --heat asks", bound=NOT_NEGATIVE)
    closed: bool = option(True, "Leave the door open", flag="--open", python="Whether the door is closed")


def test_a_panel_lasts_until_the_next_one() -> None:
    assert [said.panel for said in options_of(Oven).values()] == ["Kitchen", "Kitchen", "Time", "Time"]
    assert Oven() == Oven(heat=180.0, rack="middle", hours=None, closed=True)


def test_the_class_says_what_its_options_say() -> None:
    assert Oven.__doc__ == (
        "How to bake.\n\nSource: grandmother.\n\nAttributes:\n"
        "    heat: Of the oven; see ``rack_height``, > 0.\n"
        "    rack: Where it stands: top, middle or low.\n"
        "    hours: How long, >= 0; None: as ``heat`` asks.\n"
        "    closed: Whether the door is closed."
    )


def test_bounds() -> None:
    kept = {bound.text: [x for x in (-1.0, 0.0, 0.5, 1.0, 2.0) if bound.keeps(x)] for bound in
            (POSITIVE, NOT_NEGATIVE, BELOW_1, SHARE)}  # fmt: skip
    assert kept == {
        "> 0": [0.5, 1.0, 2.0],
        ">= 0": [0.0, 0.5, 1.0, 2.0],
        "in [0, 1)": [0.0, 0.5],
        "in [0, 1]": [0.0, 0.5, 1.0],
    }


def test_a_function_can_have_the_fields_as_keywords() -> None:
    @keywords_of(Oven)
    def bake(cake: str, **options: object) -> Oven:
        return Oven(**options)  # type: ignore[arg-type]

    found = inspect.signature(bake).parameters
    assert list(found) == ["cake", "heat", "rack", "hours", "closed"]
    assert all(found[name].kind is inspect.Parameter.KEYWORD_ONLY for name in list(found)[1:])
    assert found["heat"].default == 180.0
    assert bake("apple", rack="top").rack == "top"
