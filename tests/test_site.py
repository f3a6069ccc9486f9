"""The site is built strictly, and loads nothing from elsewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow  # ten seconds to build it


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # its advertisement
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_in_the_site(site: Path) -> None:
    pages = {p.relative_to(ROOT / "docs").with_suffix(".html") for p in (ROOT / "docs").rglob("*.md")}
    assert len(pages) > 12
    assert all((site / page).is_file() for page in pages)


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        loads = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*", page.read_text())
        assert loads
        assert [tag for tag in loads if re.search(r"(?:src|href)=\"?(?:https?:)?//", tag)] == [], page.name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", sheet.read_text()), sheet.name


def test_result_files_can_be_opened_from_the_site(site: Path) -> None:
    links = re.findall(r'href="([^"]+\.json)"', (site / "accuracy.html").read_text())
    assert len(links) > 20
    assert all((site / link).is_file() for link in links)


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("api/index.html", ("expand", "PLT", "collapse_", "fuse", "verify", "cost", "save", "load", "export")),
        ("api/training.html", ("training.train", "training.TrainConfig", "training.methods.base.Method")),
        ("api/contracts.html", ("passes.Pass", "exporters.base.Exporter", "testing.check_pass")),
    ],
)
def test_the_reference_has_what_it_promises(site: Path, page: str, names: tuple[str, ...]) -> None:
    """From docstrings, of packages that lie elsewhere in the tree, too."""
    html = (site / page).read_text()
    assert all(f'id="nbcompile.{name}"' in html for name in names)
    assert "Raises:" in html
    assert ":func:" not in html


def test_tables_of_options_show_defaults_and_words(site: Path) -> None:
    text = re.sub(r"<[^>]*>", "", (site / "api" / "training.html").read_text())
    assert re.search(r"kd_weight:\s*float\s*=\s*0\.9", text)
    assert re.search(r"kd_weight\s*\(float\)\s*–\s*Share of the distillation in the loss", text)
