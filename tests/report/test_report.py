"""The report: its page is parsed, its numbers are looked up in the tables, its graphs checked box by box."""

import builtins
import copy
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from nbcompile.core.activations import Activation
from nbcompile.core.blocks import Expanded
from nbcompile.core.errors import UsageError
from nbcompile.core.layers import LayerSpec
from nbcompile.core.site_spec import SiteSpec
from nbcompile.core.tracing.capture import capture
from nbcompile.report import collect, environment
from nbcompile.report.data import (
    Box,
    CheckRow,
    FileRow,
    Graph,
    LayerRow,
    ModelRow,
    Page,
    SiteRow,
    TrainingRun,
    WidthRow,
)
from nbcompile.report.drawing import draw_graph
from nbcompile.report.errors_by_layer import per_layer_error
from nbcompile.report.graphs import graph_of
from nbcompile.report.html import render_page, write
from nbcompile.report.labels import layer_label
from nbcompile.report.layout import BOX_HEIGHT, BOX_WIDTH, PAGE_WIDTH, layout
from nbcompile.report.opened_block import block_graph
from nbcompile.report.summary import summary
from nbcompile.results import numbers
from tests.report.report_page import HOSTILE, ParsedPage

MINIMAL = Page(title="a title", created="2026-01-02T03:04:05", command="nbcompile fuse trained.pt")


class Net(nn.Module):
    """Conv, norm, in-place ReLU6; a residual conv; a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU6(inplace=True)
        self.block = nn.Conv2d(8, 8, 1)
        self.drop = nn.Dropout()
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv(x)))
        x = x + self.block(x)
        y: Tensor = self.head(self.drop(x.mean((2, 3)).view(x.shape[0], -1)))
        return y


def giant_and_tiny() -> tuple[Net, Net]:
    """A giant whose one site is linear, and the network it merges into; the shift moves into the norm."""
    torch.manual_seed(0)
    tiny = Net().eval()
    giant = copy.deepcopy(tiny)
    spec = SiteSpec(
        name="conv",
        layer=LayerSpec.of(tiny.conv),
        block="inverted-residual",
        ratio=4,
        preserve=True,
        activation=Activation("relu6"),
        inner="norm",
        absorbers=("norm.running_mean",),
        pattern="conv",
    )
    block = Expanded(spec, copy.deepcopy(tiny.conv)).eval()
    for norm in block.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for values in (norm.weight.data, norm.bias.data, norm.running_mean):
                assert values is not None
                values.uniform_(0.1, 0.6)
    block.slope.fill_(1.0)
    giant.conv = block  # type: ignore[assignment]
    merged = block.merged()
    tiny.conv.weight.data = merged.weight.float()
    assert merged.bias is not None
    assert tiny.norm.running_mean is not None
    tiny.norm.running_mean -= merged.bias.float()
    return giant, tiny


def full_report() -> Page:
    giant, tiny = giant_and_tiny()
    history = tuple(
        {
            "epoch": epoch,
            "loss": 2.0 / epoch,
            "train_accuracy": 0.1 * epoch,
            "val_accuracy": 0.09 * epoch,
            "slope": max(0.0, (epoch - 3) / 3),
            "phase": "giant" if epoch <= 3 else "PLT",
        }
        for epoch in range(1, 7)
    )
    return replace(
        MINIMAL,
        versions={"torch": "2.9.1"},
        machine="a processor, 2 cores",
        models=(
            ModelRow(name="original", params=750_280, macs=23_499_152, flops=46_998_304, layers=53, accuracy=0.96),
            ModelRow(name="giant", params=998_200, macs=53_973_632, flops=107_947_264, accuracy=0.9722),
            ModelRow(name="tiny", params=750_280, macs=23_499_152, flops=46_998_304, accuracy=0.9722, latency=1.004),
            ModelRow(name="tiny.onnx", bytes=2_934_112, accuracy=math.nan),
        ),
        sites=collect.site_rows(giant, tiny),
        layers=(
            LayerRow(
                name="conv",
                kind="conv 3×3 3→8",
                macs_original=1_728,
                macs_tiny=1_728,
                params_original=216,
                params_tiny=216,
                error=3.1e-7,
                difference=2e-6,
                measured_at="norm",
            ),
            LayerRow(name="head", error=math.nan),
        ),
        runs=(
            TrainingRun(
                label="vanilla", history=tuple({**epoch, "slope": None, "phase": "train"} for epoch in history)
            ),
            TrainingRun(label="NetBooster", history=history),
        ),
        checks=(
            CheckRow(name="error of tiny", measured=3.1e-7, limit=1e-6, passed=True),
            CheckRow(name="same keys", measured="equal", limit="equal", passed=False),
        ),
        graphs=(graph_of(capture(tiny), {"conv"}, "original"), block_graph(giant, "conv")),
        notes=("The EMA weights were taken.",),
        files=(FileRow(path="out/tiny.onnx", what="ONNX, opset 20", bytes=2_934_112, sha256="ab" * 32),),
    )


# ---- the page


def test_minimal_report_renders() -> None:
    page = ParsedPage(render_page(MINIMAL))
    assert "a title" in page.text
    assert "nbcompile fuse trained.pt" in page.text
    assert page.tags["table"] == page.tags["svg"] == 0
    assert [value for tag, name, value in page.attributes if (tag, name) == ("a", "href")] == ["#about"]


def test_curves_say_what_was_measured() -> None:
    history = ({"epoch": 1, "val_accuracy": 0.5},)
    report = replace(MINIMAL, runs=(TrainingRun(label="a", history=history, metric="AP50"),))
    assert "AP50, %" in ParsedPage(render_page(report)).text


def test_nothing_is_loaded_from_elsewhere() -> None:
    html = render_page(full_report())
    page = ParsedPage(html)
    assert not re.search(r"https?:|//[a-z]|@import", html)
    assert page.tags["script"] == page.tags["link"] == page.tags["img"] == page.tags["iframe"] == 0
    assert page.tags["style"] == 1  # a figure's own style sheet would reach the whole page
    assert page.tags["svg"] == 3  # curves and two graphs, all inline
    references = [value for _, name, value in page.attributes if name in ("href", "src", "xlink:href")]
    assert references
    assert all(value.startswith("#") for value in references)
    assert all(url.startswith("url(#") for url in re.findall(r"url\([^)]*\)", html))
    assert not any(name.startswith(("on", "xmlns")) for _, name, _ in page.attributes)


def test_ids_are_unique_and_every_reference_has_one() -> None:
    page = ParsedPage(render_page(full_report()))
    ids = Counter(value for _, name, value in page.attributes if name == "id")
    assert max(ids.values()) == 1
    assert {value[1:] for _, name, value in page.attributes if name == "href"} <= set(ids)


def test_tables_are_filled() -> None:
    page = ParsedPage(render_page(full_report()))
    assert page.row("networks", "tiny") == [
        "tiny",
        "97.22 %",
        "23,499,152",
        "46,998,304",
        "750,280",
        "–",
        "–",
        "1.00 ×",
    ]
    assert page.row("networks", "tiny.onnx") == ["tiny.onnx", "–", "–", "–", "–", "–", "2.93 MB", "–"]
    assert page.row("checks", "error of tiny") == ["error of tiny", "3.1e-07", "1.0e-06", "passed"]
    assert page.row("checks", "same keys") == ["same keys", "equal", "equal", "failed"]
    assert page.row("layers", "conv")[1:6] == ["conv 3×3 3→8", "1,728", "1,728", "216", "216"]
    assert page.row("layers", "conv")[6:] == ["3.1e-07 *", "2.0e-06 *"]
    assert page.row("layers", "head") == ["head", *["–"] * 7]
    assert page.row("files", "out/tiny.onnx")[1:4] == ["ONNX, opset 20", "2.93 MB", "2,934,112"]
    assert page.row("sites", "conv")[1:6] == ["conv", "inverted-residual ×4", "yes", "relu6", "1"]
    assert page.row("sites", "conv")[6::2] == ["216", "216"]
    assert page.row("sites", "conv")[9] == "running_mean of norm"
    assert "The EMA weights were taken." in page.text
    assert "torch 2.9.1" in page.text
    assert "1 of 2 checks failed" in page.text


def test_columns_that_nobody_knows_are_left_out() -> None:
    page = ParsedPage(
        render_page(replace(MINIMAL, models=(ModelRow(name="tiny", macs=1, flops=2, params=3, layers=4),)))
    )
    assert page.tables["networks"] == [
        ["network", "MACs", "FLOPs", "parameters", "layers"],
        ["tiny", "1", "2", "3", "4"],
    ]


def test_numbers_are_right_aligned() -> None:
    html = render_page(full_report())
    assert '<td class="num">23,499,152</td>' in html
    assert re.search(r"\.num \{ text-align: right", html)


def test_follows_light_and_dark() -> None:
    html = render_page(full_report())
    assert "@media (prefers-color-scheme: dark)" in html
    drawn = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert not re.search(r"#[0-9a-f]{6}", drawn)  # every colour is one of the page's variables
    assert {"var(--series-1)", "var(--series-2)", "var(--ink)"} <= set(re.findall(r"var\(--[a-z0-9-]+\)", drawn))


def test_hostile_text_is_escaped() -> None:
    report = Page(
        title=HOSTILE,
        created=HOSTILE,
        command=HOSTILE,
        versions={HOSTILE: HOSTILE},
        machine=HOSTILE,
        models=(ModelRow(name=HOSTILE),),
        sites=(SiteRow(name=HOSTILE, pattern=HOSTILE, block=HOSTILE, activation=HOSTILE, shift=HOSTILE),),
        widths=(WidthRow(name=HOSTILE, channels=1, widest=2, frozen=HOSTILE),),
        layers=(LayerRow(name=HOSTILE, kind=HOSTILE, error=1.0, measured_at=HOSTILE),),
        runs=(
            TrainingRun(label=HOSTILE, history=tuple({"epoch": e, "loss": 1.0, "phase": HOSTILE * e} for e in (1, 2))),
        ),
        checks=(CheckRow(name=HOSTILE, measured=HOSTILE, limit=HOSTILE, passed=False),),
        graphs=(Graph(title=HOSTILE, nodes=(Box(name="<b>", label="<i>", detail="<u>"),)),),
        notes=(HOSTILE,),
        files=(FileRow(path=HOSTILE, what=HOSTILE, sha256=HOSTILE),),
    )
    page = ParsedPage(render_page(report))
    assert page.tags["script"] == page.tags["b"] == page.tags["i"] == page.tags["u"] == 0
    assert page.text.count("<script>alert(") > 15
    assert ("svg", "aria-label", HOSTILE) in page.attributes


def test_write_replaces_the_old_page(tmp_path: Path) -> None:
    path = tmp_path / "out.html"
    path.write_text("old")
    write(MINIMAL, path)
    assert path.read_text(encoding="utf-8") == render_page(MINIMAL)
    assert list(tmp_path.iterdir()) == [path]


def test_missing_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot write .*out\.html: the folder .*gone does not exist"):
        write(MINIMAL, tmp_path / "gone" / "out.html")


@pytest.mark.parametrize(
    ("package", "report", "message"),
    [
        ("jinja2", MINIMAL, r"writing a report needs jinja2, .*pip install 'nbcompile\[train\]'"),
        (
            "matplotlib",
            replace(MINIMAL, runs=(TrainingRun(label="a", history=({"epoch": 1, "loss": 1.0},)),)),
            r"drawing training curves needs matplotlib, .*pip install 'nbcompile\[train\]'",
        ),
    ],
)
def test_missing_package_is_one_sentence(
    package: str, report: Page, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., Any] = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=message):
        render_page(report)


# ---- summary, data, formats


def test_summary_says_what_is_known() -> None:
    assert summary(MINIMAL) == ()
    said = " ".join(summary(full_report())).replace("\u00a0", " ")
    assert "23,499,152 MACs and has 750,280 parameters, exactly as many as the original" in said
    assert "a giant with 1 expanded layer: 53,973,632 MACs, 2.30 times as many" in said
    assert (
        "right on 97.22 % of the validation set, the original, trained by itself, on 96.00 %: 1.22 points better"
        in said
    )
    assert "more than 3.1e-07 of its largest (norm)" in said
    assert "1 of 2 checks failed: same keys." in said
    assert "Written: tiny.onnx (2.93 MB)." in said


@pytest.mark.parametrize(
    ("reached", "verdict"), [(0.95, "1.00 points worse"), (0.96, "as good"), (0.9700001, "1.00 points better")]
)
def test_summary_is_honest_about_accuracy(reached: float, verdict: str) -> None:
    models = (ModelRow(name="original", accuracy=0.96), ModelRow(name="tiny", accuracy=reached))
    assert summary(replace(MINIMAL, models=models))[-1].endswith(f": {verdict}.")


def test_summary_names_a_cost_that_grew() -> None:
    models = (ModelRow(name="original", macs=10, params=5), ModelRow(name="tiny", macs=20, params=5))
    (said,) = summary(replace(MINIMAL, models=models))
    assert said == "The tiny network needs 20 MACs and has 5 parameters; the original 10 and 5."


def test_summary_of_an_exact_network() -> None:
    layers = (LayerRow(name="a", error=0.0), LayerRow(name="b", error=math.nan))
    assert summary(replace(MINIMAL, layers=layers)) == ("Every layer gives exactly the giant's output.",)


def test_json_is_plain() -> None:
    plain = full_report().to_json()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["models"][3]["accuracy"] is None
    assert plain["runs"][1]["history"][5]["slope"] == 1.0


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (numbers.count, 23_499_152, "23,499,152"),
        (numbers.count, None, "–"),
        (numbers.percent, 0.9722, "97.22 %"),
        (numbers.percent, math.nan, "–"),
        (numbers.ratio, 2.296, "2.30 ×"),
        (numbers.bytes_in_unit, 640, "640 B"),
        (numbers.bytes_in_unit, 2_934_112, "2.93 MB"),
        (numbers.small, 0.0, "0"),
        (numbers.small, 3.14e-7, "3.1e-07"),
        (numbers.small, 0.12345, "0.1235"),
        (numbers.small, 12_345.678, "12,345.7"),
        (numbers.small, math.inf, "∞"),
        (numbers.small, -math.inf, "−∞"),
        (numbers.small, math.nan, "–"),
        (numbers.small, "equal", "equal"),
    ],
)
def test_formats(form: Callable[[Any], str], value: Any, text: str) -> None:
    assert form(value).replace("\u00a0", " ") == text


# ---- graphs


def test_graph_folds_norm_activation_and_bookkeeping() -> None:
    graph = graph_of(capture(Net()), {"block"}, "net")
    assert [(node.label, node.detail, node.highlighted) for node in graph.nodes] == [
        ("input", "", False),
        ("conv 3×3 3→8", "norm · ReLU6", False),
        ("conv 1×1 8", "", True),
        ("add", "", False),
        ("mean", "", False),
        ("view", "", False),
        ("linear 8→10", "", False),
    ]
    assert graph.edges == ((0, 1), (1, 2), (1, 3), (2, 3), (3, 4), (4, 5), (5, 6))


def test_giant_shows_its_block_whole_and_opened() -> None:
    giant, _ = giant_and_tiny()
    whole = graph_of(capture(giant)).nodes[1]
    assert (whole.name, whole.label, whole.highlighted) == ("conv", "inverted-residual ×4", True)
    opened = block_graph(giant, "conv")
    assert opened.title == "What stands in the giant for conv"
    assert [(node.name, node.label, node.detail) for node in opened.nodes[1:]] == [
        ("conv.stages.0.layer", "depthwise 3×3 3→12", "norm · PLT relu6"),
        ("conv.stages.1.layer", "depthwise 1×1 12", "norm · PLT relu6"),
        ("conv.last", "conv 1×1 12→8", "norm"),
        ("conv.original", "conv 3×3 3→8", ""),
        ("add", "add", ""),
    ]
    assert opened.edges == ((0, 1), (1, 2), (2, 3), (0, 4), (3, 5), (4, 5))


def test_long_network_is_drawn_block_by_block() -> None:
    blocks = [nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)) for _ in range(9)]
    gm = capture(nn.Sequential(*blocks))
    assert len(graph_of(gm).nodes) == 28
    coarse = graph_of(gm, {"4.1"}, most=12)
    assert [node.name for node in coarse.nodes] == ["input_1", *map(str, range(9))]
    assert {node.label for node in coarse.nodes[1:]} == {"3 layers"}
    assert [node.name for node in coarse.nodes if node.highlighted] == ["4"]
    assert coarse.edges == tuple((i, i + 1) for i in range(9))


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (nn.Conv2d(3, 8, 3, stride=2), "conv 3×3 /2 3→8"),
        (nn.Conv2d(8, 8, (3, 1), stride=(2, 1), groups=8), "depthwise 3×1 /2×1 8"),
        (nn.Conv1d(8, 16, 5, groups=4), "conv (g 4) 5 8→16"),
        (nn.ConvTranspose2d(8, 4, 2), "convT 2×2 8→4"),
        (nn.Linear(4, 2), "linear 4→2"),
        (nn.MaxPool2d(2), "MaxPool2d"),
    ],
)
def test_labels(module: nn.Module, text: str) -> None:
    assert layer_label(module) == text


def ladder(rungs: int) -> Graph:
    """A chain with a residual edge around every two of its boxes, and a parallel box beside the first."""
    nodes = tuple(Box(name=f"n{i}", label="conv 1×1 8") for i in range(rungs + 1))
    chain = [(i, i + 1) for i in range(rungs - 1)]
    skips = [(i, i + 3) for i in range(1, rungs - 3, 3)]
    return Graph(title="ladder", nodes=nodes, edges=(*chain, *skips, (0, rungs), (rungs, 4)))


@pytest.mark.parametrize("rungs", [8, 30, 100])
def test_layout_keeps_boxes_apart_and_lines_clear(rungs: int) -> None:
    graph = ladder(rungs)
    placed = layout(graph)
    corners = list(zip(placed.x, placed.y, strict=True))
    assert len(set(corners)) == len(graph.nodes)
    assert placed.width <= PAGE_WIDTH
    assert all(0 <= x <= placed.width - BOX_WIDTH and 0 <= y <= placed.height - BOX_HEIGHT for x, y in corners)
    for a, b in graph.edges:
        assert (placed.column[a], placed.y[a]) < (placed.column[b], placed.y[b])  # never backwards
    for (a, b), lane in placed.lanes.items():
        for x, y in corners:
            assert not (x <= lane <= x + BOX_WIDTH and placed.y[a] <= y <= placed.y[b])
    assert (rungs, 4) in placed.drops


def test_lanes_do_not_overlap() -> None:
    nodes = tuple(Box(name=f"n{i}", label="conv") for i in range(10))
    edges = (*((i, i + 1) for i in range(9)), *((i, i + 3) for i in range(7)), (0, 5))
    lanes = layout(Graph(title="dense", nodes=nodes, edges=edges)).lanes
    assert len(lanes) == 8
    assert lanes[0, 3] == lanes[0, 5]  # one value, one lane
    for (a, b), lane in lanes.items():
        assert not [c for (c, d), other in lanes.items() if a < c < b and other == lane]


def test_drawing_has_every_box_and_edge() -> None:
    graph = ladder(30)
    svg = draw_graph(graph)
    page = ParsedPage(svg)
    assert page.tags["rect"] == len(graph.nodes)
    assert page.tags["path"] == len(graph.edges)
    assert "n30" in page.text


def test_empty_graph_draws_nothing() -> None:
    assert ParsedPage(draw_graph(Graph(title="empty"))).tags == Counter(svg=1)


def test_long_texts_are_shortened_inside_the_box() -> None:
    node = Box(name="a." * 60 + "end", label="conv " * 20, detail="norm")
    drawn = re.findall(r"<text[^>]*>(.*?)</text>", draw_graph(Graph(title="", nodes=(node,))))
    label, name = (re.sub(r"<.*?>", "", text) for text in drawn)
    assert label.endswith("…")
    assert name.startswith("…")
    assert name.endswith("a.end")
    assert max(len(label), len(name)) < 40


# ---- error by layer


def test_error_by_layer_is_measured_behind_the_absorbing_norm() -> None:
    giant, tiny = giant_and_tiny()
    rows = {row.name: row for row in per_layer_error(giant, tiny, torch.randn(2, 3, 7, 5))}
    assert list(rows) == ["conv", "norm", "act", "block", "drop", "head"]
    assert rows["conv"].measured_at == "norm"
    assert rows["conv"].error == rows["norm"].error
    for row in rows.values():
        assert row.error is not None
        assert row.error < 1e-6


def test_error_by_layer_finds_the_wrong_layer() -> None:
    giant, tiny = giant_and_tiny()
    tiny.block.weight.data[0] += 1.0
    rows = {row.name: row for row in per_layer_error(giant, tiny, torch.randn(2, 3, 7, 5))}
    assert rows["act"].error is not None
    assert rows["act"].error < 1e-6
    assert rows["block"].error is not None
    assert rows["block"].error > 1e-2
    assert rows["block"].difference is not None
    assert rows["block"].difference > 1e-2


def test_error_by_layer_shows_nan_and_other_shapes() -> None:
    giant, tiny = giant_and_tiny()
    tiny.block.bias.data.fill_(math.nan)  # type: ignore[union-attr]
    tiny.head = nn.Linear(8, 11)
    rows = {row.name: row for row in per_layer_error(giant, tiny, torch.randn(2, 3, 7, 5))}
    assert math.isnan(rows["block"].error or 0.0)
    assert math.isnan(rows["head"].error or 0.0)


def test_error_by_layer_takes_the_worst_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 3, 1), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.act(self.conv(self.act(x)))
            return y

    first = Twice()
    second = copy.deepcopy(first)
    second.conv.weight.data += 0.5
    rows = {row.name: row for row in per_layer_error(first, second, torch.rand(1, 3, 4, 4))}
    assert (rows["act"].error or 0.0) > 1e-2


def test_error_by_layer_keeps_a_nan_that_a_later_call_does_not_show() -> None:
    class Cleaned(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.scale, self.act = scale, nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.act(self.act(x * self.scale).nan_to_num())
            return y

    (row,) = per_layer_error(Cleaned(1.0), Cleaned(math.nan), torch.rand(1, 3))
    assert math.isnan(row.error or 0.0)


def test_error_by_layer_leaves_the_models_alone() -> None:
    giant, tiny = giant_and_tiny()
    giant.train()
    before = copy.deepcopy(giant.state_dict())
    per_layer_error(giant, tiny, torch.randn(2, 3, 7, 5))
    assert giant.training
    assert not any(module._forward_hooks for model in (giant, tiny) for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in giant.state_dict().items())


def test_networks_without_a_common_name_are_refused() -> None:
    with pytest.raises(UsageError, match="modules of equal name, and these two networks share none"):
        per_layer_error(Net(), nn.Sequential(nn.Linear(2, 2)), torch.randn(1, 3, 4, 4))


# ---- what is collected


def test_site_rows() -> None:
    giant, tiny = giant_and_tiny()
    (row,) = collect.site_rows(giant, tiny)
    assert row.params_before == row.params_after == 216
    assert row.params_giant == sum(p.numel() for p in giant.conv.parameters())
    assert (row.slope, row.shift, row.preserve) == (1.0, "running_mean of norm", True)
    assert collect.site_rows(tiny) == ()
    (wrapped,) = collect.site_rows(nn.Sequential(giant))
    assert (wrapped.name, wrapped.shift, wrapped.params_after) == ("0.conv", "running_mean of 0.norm", None)


def test_report_on_models() -> None:
    giant, tiny = giant_and_tiny()
    inputs = torch.randn(2, 3, 7, 5)
    report = collect.report_on("a title", "a command", tiny, inputs, giant=giant, original=Net())
    assert [row.name for row in report.models] == ["original", "giant", "tiny"]
    original, big, small = report.models
    assert (original.macs, original.params, original.layers) == (small.macs, small.params, small.layers)
    macs = 3 * 8 * 9 * 35 + 8 * 8 * 35 + 8 * 10
    assert (small.macs, small.flops, small.layers) == (macs, 2 * macs, 3)
    assert big.macs is not None
    assert big.macs > macs
    conv = report.layers[0]
    assert (conv.macs_original, conv.macs_tiny, conv.params_original, conv.params_tiny) == (7560, 7560, 216, 216)
    assert [graph.title for graph in report.graphs] == [
        "The network; expanded layers are marked",
        "What stands in the giant for conv",
    ]
    assert [node.name for node in report.graphs[0].nodes if node.highlighted] == ["conv"]
    ParsedPage(render_page(report))


def test_report_on_a_tiny_network_alone() -> None:
    report = collect.report_on("a title", "a command", Net(), torch.randn(1, 3, 7, 5))
    assert [row.name for row in report.models] == ["tiny"]
    assert not report.sites
    assert not report.layers
    assert [graph.title for graph in report.graphs] == ["The network"]


def test_report_on_an_untraceable_network_draws_its_block_only() -> None:
    class Untraceable(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.sum() > 0 else -x)

    giant, tiny = giant_and_tiny()
    giant.__class__ = tiny.__class__ = Untraceable
    report = collect.report_on("a title", "a command", tiny, torch.rand(1, 3, 7, 5), giant=giant)
    assert [graph.title for graph in report.graphs] == ["What stands in the giant for conv"]


def test_environment() -> None:
    assert {"python", "torch", "numpy"} <= set(environment.versions())
    assert "cores" in environment.machine_line()


def test_symbolic_trace_of_a_plain_network_is_enough() -> None:
    assert len(graph_of(fx.symbolic_trace(Net())).nodes) == 7
