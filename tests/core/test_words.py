"""Words of others are shown in one line, printable and short; ours stay as they are."""

import logging

import pytest

from nbcompile import CheckpointError
from nbcompile.core.words import SENTENCE, WORD, printable

HOSTILE = "a\x1b[2J\nnbcompile: all checks passed\r\x00\u202e\ud800"
SHOWN = r"a\x1b[2J\nnbcompile: all checks passed\r\x00\u202e\ud800"


@pytest.mark.parametrize(
    "text", ["", "features.0.conv", "größer als 1 × 2 – «Wörter» 層 🙂", "[b] {x} \\ 1,000\u00a0B"]
)
def test_what_is_printable_stays(text: str) -> None:
    assert printable(text) == text


def test_what_is_not_is_escaped_once() -> None:
    assert printable(HOSTILE) == SHOWN
    assert printable(printable(HOSTILE)) == SHOWN


@pytest.mark.parametrize("letter", ["x", "\x1b", "x ", "\n"])
def test_a_megabyte_loses_its_middle(letter: str) -> None:
    text = printable(f"the start {letter * 10**6} the end")
    assert text.startswith("the start ")
    assert text.endswith(" the end")
    assert " characters … " in text
    assert len(text) <= SENTENCE
    assert len(printable(letter * 10**6, 100)) <= 100
    assert printable(text) == text


def test_a_list_of_names_is_whole() -> None:
    names = ", ".join(f"features.{i}.conv" for i in range(200))
    assert printable(names) == names
    assert len(printable("x" * (WORD + 1))) <= WORD


def test_errors_are_printable_whoever_shows_them() -> None:
    assert str(CheckpointError(f"'{HOSTILE}' is missing")) == f"'{SHOWN}' is missing"


def test_what_is_logged_is_printable_for_every_handler(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("nbcompile").warning("%s: %d layers", HOSTILE, 3)
    assert caplog.messages == [f"{SHOWN}: 3 layers"]
