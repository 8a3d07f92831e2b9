"""The page of a comparison: what it says of real runs, and how it behaves in a real browser."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import nlhf_zoo as nz
from nlhf_zoo.cli.main import main
from nlhf_zoo.data.matrices import counts_to_probabilities
from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import Game
from nlhf_zoo.report.comparison import compose, write_comparison
from nlhf_zoo.report.cycles import three_cycles
from nlhf_zoo.report.latex import latex_table
from nlhf_zoo.report.palette import Palette
from nlhf_zoo.report.reading import read_comparison
from tests.browsing import visits
from tests.comparison_folder import LADDER, add_language, build, random_game
from tests.test_report import NASTY, Page

ONE, COUNTS = "one game", "votes <b>"


def counted() -> tuple[Game, np.ndarray]:
    """Three that beat each other in a circle and one that loses to all, known from few votes."""
    wins = np.array([[0, 9, 4, 9], [3, 0, 9, 9], [9, 4, 0, 8], [2, 1, 3, 0]], dtype=np.float64)
    oracle = nz.MatrixOracle(counts_to_probabilities(torch.from_numpy(wins)), labels=("a", "b", "c", NASTY[:20]))
    return Game(oracle, oracle.uniform_policy(), beta=0.1), wins


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two games, one of them from counts, three solvers, two seeds, and what language models leave besides."""
    game, wins = counted()
    folder = build(tmp_path_factory.mktemp("made") / "out", {ONE: random_game(), COUNTS: game}, wins={COUNTS: wins})
    add_language(folder, ONE, [f"{solver}, seed {seed}" for solver in LADDER for seed in (0, 1)], NASTY)
    return folder


@pytest.fixture(scope="module")
def page(made: Path) -> Page:
    return Page(write_comparison(made).read_text("utf-8"))


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def edit(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def findings(page: Page) -> str:
    return page.all("ul", class_="verdicts")[0].text


# --- what it says


def test_page_has_every_part(page: Page):
    titles = [element.text for tag in ("h2", "h3", "h4") for element in page.all(tag)]
    for title in (
        "Who stands where", ONE, COUNTS, "Convergence", "Who beats whom", "Equilibrium",
        "Win rates against the reference",
        "Everyone against everyone, training judge", "Everyone against everyone, held-out judge",
        "Nash average over policies", "The judges", "In the pool of all policies", "Samples side by side",
        "Tuning", "How to do it again", "Environment", "Settings",
    ):  # fmt: skip
        assert title in titles, title
    kinds = [figure["kind"] for figure in page.figures()]
    assert (kinds.count("convergence"), kinds.count("matrix")) == (6, 4)
    ids = [element.attributes["id"] for element in page.elements if "id" in element.attributes]
    assert len(ids) == len(set(ids))


def test_the_pool_says_whom_each_loses_most_to(made: Path, page: Page):
    pool = json.loads((made / "summary.json").read_text())["games"][ONE]["pool"]
    text = " ".join(element.text for element in page.all("table"))
    for solvers in pool.values():
        for one in solvers.values():
            assert one["weakest"]["column"] in text
            assert f"{one['weakest']['mean']:.3f}" in text
    assert text.count("mean |P - 1/2|") == 1


def test_curves_and_table_are_what_was_measured(made: Path, page: Page):
    summary = json.loads((made / "summary.json").read_text())
    runs = {game.label: game.runs for game in read_comparison(made).games}
    first = page.figures()[0]
    curve = next(trace for trace in first["data"] if trace["name"] == "nash_mp")
    ends = [run[-1, 4] for run in runs[ONE]["duality_gap"]["nash_mp"]]
    assert curve["low"][-1] == pytest.approx(min(ends), rel=1e-5)
    assert curve["high"][-1] == pytest.approx(max(ends), rel=1e-5)
    assert "tokens" not in curve["xs"]
    told = summary["games"][ONE]["table"][0]["final"]["kl_to_equilibrium"]["median"]
    row = next(i for i, e in enumerate(page.elements) if e.tag == "tr" and e.attributes.get("data-group") == "nash_mp")
    cells = [e.attributes["data-value"] for e in page.elements[row:] if e.tag == "td" and "data-value" in e.attributes]
    assert float(str(cells[0])) == 1.0  # the overall rank
    assert repr(told) in cells


def test_tuning_runs_are_no_part_of_the_curves(made: Path):
    assert all(
        len(runs) == 2
        for game in read_comparison(made).games
        for found in game.runs.values()
        for runs in found.values()
    )


def test_obeyed_and_broken_bounds_are_told_apart(made: Path, page: Page, copy: Path):
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    assert "with a claimed bound obey it (nash_mp" in findings(page)
    table = pq.read_table(copy / "results.parquet")
    at = table.column_names.index("bound")
    pq.write_table(table.set_column(at, "bound", pc.multiply(table["bound"], 1e-3)), copy / "results.parquet")
    assert re.search(
        r"measurements lie above a bound that their solver claims \(.*nash_mp",
        findings(Page(compose(read_comparison(copy)).html())),
    )


def test_uncertainty_of_counts_is_drawn_and_said(page: Page):
    assert "is known from win counts" in findings(page)
    bars = [
        trace for figure in page.figures() for trace in figure["data"] if "error_x" in trace and trace["type"] == "bar"
    ]
    (bar,) = bars
    assert max(bar["error_x"]["array"]) > 0.01
    assert "Probability of being played" in "".join(element.text for element in page.all("th"))


def test_secrets_of_command_and_settings_are_blotted_out(copy: Path):
    (copy / "config.yaml").write_text("oracle_options:\n  api_key: abcdef123\n")
    html = compose(read_comparison(copy)).html()
    assert "abcdef123" not in html
    assert "api_key" in html


def test_interrupted_comparison_says_so(copy: Path):
    def stop(summary: dict[str, Any]) -> None:
        summary["partial"] = True
        summary["cells"] = {"planned": 12, "done": 7, "failed": 1}
        summary["games"][ONE]["table"][0]["errors"] = ["out of range"]

    edit(copy / "summary.json", stop)
    text = findings(Page(compose(read_comparison(copy)).html()))
    assert "Unfinished: 7 of 12 cells have ended." in text
    assert "1 cell failed, missing from every figure. out of range." in text


def test_measurements_alone_make_a_page(copy: Path):
    for path in (*copy.glob("*.json"), *copy.glob("*.jsonl"), copy / "win_rates.parquet", copy / "config.yaml"):
        path.unlink()
    shutil.rmtree(copy / "games")
    found = Page(write_comparison(copy).read_text("utf-8"))
    assert "there is no summary yet" in findings(found)
    assert [figure["kind"] for figure in found.figures()] == ["convergence"] * 6
    assert "nash_md eta=0.5" in "".join(element.text for element in found.all("tbody"))


def test_solver_is_called_as_entered_whatever_tuning_chose(copy: Path):
    def tune(summary: dict[str, Any]) -> None:
        for game in summary["games"].values():
            game["table"][1]["entry"] = "nash_md tuned"

    edit(copy / "summary.json", tune)
    rows = pq.read_table(copy / "results.parquet").to_pylist()
    tuned = [{**row, "entry": "nash_md tuned"} if row["name"] == "nash_md" else row for row in rows]
    pq.write_table(pa.Table.from_pylist(tuned), copy / "results.parquet")
    comparison = read_comparison(copy)
    assert comparison.names["nash_md tuned"] == "nash_md"
    assert set(comparison.games[0].runs["duality_gap"]) == {"nash_mp", "nash_md tuned", "online_ipo eta=0.5"}
    html = compose(comparison).html()
    assert "Hyperparameters" in html
    assert '"name":"nash_md tuned"' in html


@pytest.mark.parametrize(
    "name", ["summary.json", "results.parquet", "games/game-0.npz", "samples.jsonl", "win_rates.parquet"]
)
def test_damaged_file_is_one_clear_line(copy: Path, name: str):
    (copy / name).write_bytes(b"\xff{")
    with pytest.raises(BadInput, match=re.escape(Path(name).name)) as raised:
        read_comparison(copy)
    assert "\n" not in str(raised.value)


def test_file_with_pickles_is_refused(copy: Path):
    np.savez(copy / "games" / "game-0.npz", P=np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(BadInput, match="cannot be read"):
        read_comparison(copy)


# --- cycles and colours


def test_cycles_are_counted_and_the_clearest_comes_first():
    matrix = np.full((6, 6), 0.5)
    for (i, j, k), p in (((0, 1, 2), 0.6), ((3, 5, 4), 0.9)):
        for a, b in ((i, j), (j, k), (k, i)):
            matrix[a, b], matrix[b, a] = p, 1 - p
    found = three_cycles(matrix)
    assert (found.count, found.triples) == (2, 20)
    assert found.clearest == ((3, 5, 4), (0, 1, 2))
    assert three_cycles(matrix, among=[0, 1, 2]).clearest == ((0, 1, 2),)


def test_order_has_no_cycle():
    scores = np.arange(8.0)
    found = three_cycles(1 / (1 + np.exp(scores[None] - scores[:, None])))
    assert (found.count, found.clearest) == (0, ())


def test_many_solvers_differ_in_colour_or_marker():
    names = [f"solver {at}" for at in range(24)]
    palette = Palette()
    palette.introduce({**{name: name for name in names}, "nash_mp eta=1": "nash_mp", "nash_mp": "nash_mp"})
    assert palette["nash_mp"] == Palette()["nash_mp"]
    inks = [(palette[name].colour, palette[name].marker) for name in [*names, "nash_mp", "nash_mp eta=1"]]
    assert len(set(inks)) == len(inks)


# --- the verb


def test_verb_writes_page_figures_and_table(copy: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("matplotlib")
    assert main(["report", str(copy), "--png", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert Path(told["report"]) == copy / "report.html"
    assert told["solvers"] == list(LADDER)
    assert len(told["figures"]) == 6
    assert all(Path(path).read_bytes().startswith(b"\x89PNG") for path in told["figures"])
    assert "\\toprule" in Path(told["table"]).read_text()


def test_verb_refuses_another_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no results.parquet" in capsys.readouterr().err


def test_latex_table_is_escaped_and_balanced(made: Path):
    text = latex_table(read_comparison(made))
    assert text.count("\\begin{") == text.count("\\end{") == 2
    assert "nash\\_md eta=0.5" in text
    assert "\\textbf{nash\\_mp}" in text
    assert not re.search(r"(?<!\\)[_%#]", re.sub(r"^%.*$|\$[^$]*\$", "", text, flags=re.MULTILINE))
    widths = {line.count("&") for line in text.splitlines() if "&" in line and "multicolumn" not in line}
    assert len(widths) == 1


# --- in a browser


@pytest.fixture(scope="module")
def opened(browser: Any, made: Path):
    """The page, opened once, as that takes seconds; no test looks at what another leaves changed."""
    with visits(browser, made) as go:
        yield go(write_comparison(made))


def test_browser_filters_a_solver_on_the_whole_page(opened: Any):
    assert opened.title() != "owned"
    rows = opened.locator("tr[data-group=nash_mp]")
    assert rows.count() == 5  # over all games, on each, and in the pools of two judges
    boxes = opened.get_by_role("checkbox", name="nash_mp", exact=True)
    boxes.first.uncheck(force=True)
    assert all(not row.is_visible() for row in rows.all())
    assert not any(box.is_checked() for box in boxes.all())
    hidden = "document.querySelector('.plot').data.filter((trace) => trace.visible === false).length"
    assert opened.evaluate(hidden) == 3
    boxes.nth(1).check(force=True)
    assert rows.first.is_visible()
    assert opened.evaluate(hidden) == 0


def test_browser_sorts_the_final_table_by_click_and_key(opened: Any):
    table = opened.locator("table").nth(1)
    gap = table.get_by_role("button", name="Duality gap")
    values = "rows => rows.map((row) => Number(row.cells[at].dataset.value))"
    at = table.locator("thead th").all_inner_texts()
    column = next(i for i, text in enumerate(at) if text.startswith("Duality gap"))

    def shown() -> list[float]:
        return table.locator("tbody tr").evaluate_all(values.replace("at]", f"{column}]"))

    gap.click()
    assert shown() == sorted(shown())
    assert table.locator("thead th").nth(column).get_attribute("aria-sort") == "ascending"
    gap.focus()
    opened.keyboard.press("Enter")
    assert shown() == sorted(shown(), reverse=True)
    assert shown() != sorted(shown())


def test_browser_shows_values_under_the_pointer(opened: Any):
    plot = opened.locator(".plot").first
    plot.scroll_into_view_if_needed()
    point = plot.locator(".scatterlayer .points path.point").last
    box = point.bounding_box()
    opened.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    label = plot.locator(".hoverlayer .hovertext")
    label.first.wait_for(state="attached")
    assert re.search(r"over seeds.*steps \d+, queries \d+", label.first.text_content(), re.DOTALL)


def test_browser_outlines_the_chosen_cycle(opened: Any):
    plot = opened.locator(".plot[data-kind=matrix]").first
    plot.scroll_into_view_if_needed()
    plot.locator(".main-svg").first.wait_for(state="attached")
    drawn = "plot => plot.layout.shapes.filter((shape) => shape.type === 'rect').map((shape) => [shape.y0, shape.x0])"
    cells = plot.evaluate(drawn)
    assert len(cells) == 3
    values = plot.evaluate("plot => plot.data[0].z")
    assert all(values[int(row + 0.5)][int(column + 0.5)] > 0.5 for row, column in cells)
    opened.get_by_role("radio", name="none").first.check(force=True)
    assert plot.evaluate(drawn) == []


TEXTS = (
    "p.lead", ".verdicts li", "nav a", "caption", "td.number", "td small", "thead th", "figcaption", "summary",
    ".choice span", "pre code",
)  # fmt: skip
CONTRASTS = r"""names => {
  const channel = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const weights = [0.2126, 0.7152, 0.0722];
  const light = (rgb) => rgb.match(/[\d.]+/g).slice(0, 3)
    .reduce((sum, c, at) => sum + weights[at] * channel(Number(c)), 0);
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if (!/, 0\)$|transparent/.test(colour)) return colour;
    }
  };
  return names.map((name) => {
    const element = document.querySelector(name);
    const [low, high] = [light(getComputedStyle(element).color), light(behind(element))].sort((a, b) => a - b);
    return [name, (high + 0.05) / (low + 0.05)];
  });
}"""
"""WCAG's contrast of the first element of each selector with what is behind it."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_browser_text_stands_out(opened: Any, scheme: str):
    opened.emulate_media(color_scheme=scheme)
    contrasts = opened.evaluate(CONTRASTS, list(TEXTS))
    opened.emulate_media(color_scheme="light")
    assert {name: ratio for name, ratio in contrasts if ratio < 4.5} == {}


def test_browser_fits_a_small_phone(visit: Any, made: Path):
    page = visit(write_comparison(made), width=360)
    for details in page.locator("details").all():
        details.evaluate("details => { details.open = true; }")
    for plot in page.locator(".plot").all():
        plot.scroll_into_view_if_needed()
        plot.locator(".main-svg").first.wait_for(state="attached")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
