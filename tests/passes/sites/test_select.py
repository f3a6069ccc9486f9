from fractions import Fraction
from math import ceil

import pytest

from nbcompile.core.errors import UsageError
from nbcompile.passes.sites.select import WORDS, named_patterns, select_sites

CANDIDATES = tuple(f"block{i}.expand" for i in range(16))
LAYERS = ("stem", *(name for c in CANDIDATES for name in (c, c.replace("expand", "project"))), "head")


def taken(where: str, n: int = 16) -> list[int]:
    names = CANDIDATES[:n] if n <= 16 else tuple(f"layer{i}" for i in range(n))
    return [names.index(name) for name in select_sites(where, names, names)]


@pytest.mark.parametrize(
    ("where", "indices"),
    [
        ("all", list(range(16))),
        ("first:8", list(range(8))),
        ("middle:8", list(range(4, 12))),
        ("last:8", list(range(8, 16))),
        ("first:16", list(range(16))),
        ("middle:1", [7]),
        ("middle:3", [6, 7, 8]),
        ("uniform:0.5", [0, 2, 4, 6, 8, 10, 12, 14]),
        ("uniform:1/2", [0, 2, 4, 6, 8, 10, 12, 14]),
        ("uniform:1", list(range(16))),
        ("uniform:1/3", [0, 3, 6, 9, 12, 15]),
    ],
)
def test_words(where: str, indices: list[int]) -> None:
    assert taken(where) == indices


@pytest.mark.parametrize("share", ["0.1", "1/3", "0.07", "0.14", "0.29", "2/7", "0.75", "0.999", "1e-3"])
@pytest.mark.parametrize("n", [1, 2, 7, 16, 50, 61, 100])
def test_uniform_is_exact_arithmetic(share: str, n: int) -> None:
    """0.07 · 100 is 7.000000000000001 in floating point; the rule takes exactly ⌈n·f⌉ of n, the first among them."""
    f = Fraction(share)
    chosen = taken(f"uniform:{share}", n)
    assert chosen == [i for i in range(n) if ceil((i + 1) * f) > ceil(i * f)]
    assert len(chosen) == ceil(n * f)
    assert chosen[0] == 0


def test_names_and_globs_may_name_any_layer_in_graph_order() -> None:
    assert select_sites(["head", "block3.*"], CANDIDATES, LAYERS) == ("block3.expand", "block3.project", "head")
    assert select_sites("head, block3.*", CANDIDATES, LAYERS) == ("block3.expand", "block3.project", "head")
    assert select_sites("stem", (), LAYERS) == ("stem",)
    assert named_patterns("uniform:0.5") is None
    assert named_patterns("a, b*,") == ["a", "b*"]
    assert named_patterns(("a",)) == ["a"]


@pytest.mark.parametrize("where", ["uniform:0", "uniform:1.5", "uniform:-1", "uniform:x", "uniform:1/0", "uniform"])
def test_refuses_shares(where: str) -> None:
    with pytest.raises(UsageError) as caught:
        select_sites(where, CANDIDATES, LAYERS)
    assert str(caught.value).startswith(f"where='{where}' does not fit the 16 candidates; write {WORDS}; candidates: ")


@pytest.mark.parametrize("where", ["first:0", "first:17", "middle:-1", "last:x", "first:", "all:3", "first:2.5"])
def test_refuses_counts(where: str) -> None:
    with pytest.raises(UsageError, match=r"does not fit the 16 candidates; .*candidates: block0\.expand, block1\.exp"):
        select_sites(where, CANDIDATES, LAYERS)


def test_what_matches_nothing_is_told_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"no convolution or linear layer is called 'blok\*', 'x'; candidates: block0"):
        select_sites(["blok*", "head", "x"], CANDIDATES, LAYERS)
    with pytest.raises(UsageError, match="is called nothing; candidates: block0"):
        select_sites([], CANDIDATES, LAYERS)
    with pytest.raises(UsageError, match="is called 'x'; layers that can be named: stem, head"):
        select_sites("x", (), ("stem", "head"))
    with pytest.raises(UsageError, match=r"where='all': no pattern of layers to expand is in this network; .*: none"):
        select_sites("all", (), ())


def test_long_lists_are_cut() -> None:
    names = tuple(f"layer{i}" for i in range(100))
    with pytest.raises(UsageError, match=r"layer22, layer23, … \(100 in all\)$"):
        select_sites("nothing", names, names)
