"""The pages of docs are run."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import nbcompile
from nbcompile.core.blocks import sites

PAGE = (Path(__file__).parent.parent / "docs" / "training.md").read_text()
SHARED = re.search(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
PROGRAMS = dict(re.findall(r"## ([^\n]+)\n+```python\n(.*?)```", PAGE, flags=re.DOTALL))


def test_the_page_has_the_frameworks() -> None:
    assert list(PROGRAMS) == ["A plain PyTorch loop", "Lightning", "timm", "Accelerate"]


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # Lightning calls a name that torch deprecated
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")  # Lightning's advice on speed
@pytest.mark.parametrize("framework", PROGRAMS)
def test_its_program_ends_in_a_tiny_network(framework: str) -> None:
    assert SHARED is not None
    torch.manual_seed(0)
    space: dict[str, Any] = {}
    exec(compile(SHARED[1], "training.md", "exec"), space)
    before = {name: value.clone() for name, value in space["giant"].state_dict().items()}
    exec(compile(PROGRAMS[framework], "training.md", "exec"), space)
    giant, tiny = space["giant"], space["tiny"]
    assert {float(block.slope) for block in sites(giant).values()} == {1.0}
    assert not torch.equal(before["classifier.weight"], giant.state_dict()["classifier.weight"])
    trained = space["ema"].module if "ema" in space else giant
    assert nbcompile.verify(trained, tiny).passed
    nbcompile.zoo.dscnn().load_state_dict(tiny.state_dict())
