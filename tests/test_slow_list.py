"""The list of slow tests cannot go stale unseen."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import slow


class Item(SimpleNamespace):
    """A test that was collected, and its marks."""

    def __init__(self, nodeid: str) -> None:
        super().__init__(nodeid=nodeid, marks=[])

    def add_marker(self, mark: pytest.MarkDecorator) -> None:
        self.marks.append(mark.name)


def marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: str, whole: bool = True) -> list[list[str]]:
    monkeypatch.setattr(slow, "LIST", tmp_path / "slow.txt")
    slow.LIST.write_text(listed)
    items: Any = [Item(f"tests/{name}") for name in ("a.py::one", "a.py::two[x: y]", "b.py::one")]
    slow.mark_listed(items, whole)
    return [item.marks for item in items]


def test_those_that_are_named_are_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = marked(tmp_path, monkeypatch, "tests/a.py::two[x: y]\ntests/elsewhere.py::one\n")
    assert found == [[], ["slow"], []]


def test_a_name_that_no_test_has_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = "tests/b.py::renamed\n"
    with pytest.raises(
        pytest.UsageError, match=r"^slow.txt names tests/b.py::renamed, and there is no such test: mend "
    ):
        marked(tmp_path, monkeypatch, gone)
    assert marked(tmp_path, monkeypatch, gone, whole=False) == [[], [], []]  # b.py was collected in part


def test_the_list_is_in_order_and_names_files_that_are_there() -> None:
    listed = slow.LIST.read_text().splitlines()
    assert listed == sorted({*listed})
    assert all(Path(__file__).parent.parent.joinpath(name.partition("::")[0]).is_file() for name in listed)
