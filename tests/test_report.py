"""The report page: what is in it, what cannot be in it, and how it behaves in a real browser."""

from __future__ import annotations

import functools
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nlhf_zoo.errors import BadInput
from nlhf_zoo.report import Report
from nlhf_zoo.report.convergence import POINTS, check_claims, claims, curves
from nlhf_zoo.report.figures import embed
from nlhf_zoo.report.markup import escape, number
from nlhf_zoo.report.palette import SHADES, Palette
from nlhf_zoo.secrecy import redact

NASTY = "<script>document.title='owned'</script><img src=x onerror=alert(1)>\"'&\x00\x1b\ud800"
VOID = {"meta", "link", "img", "br", "input", "hr"}


@attrs.define
class Element:
    tag: str
    attributes: dict[str, str | None]
    text: str = ""


class Page(HTMLParser):
    """Every element of a page, with the text directly and indirectly in it; unbalanced tags fail."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[Element] = []
        self.open: list[Element] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {[element.tag for element in self.open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data

    def all(self, tag: str, **attributes: str) -> list[Element]:
        return [
            element
            for element in self.elements
            if element.tag == tag and all(element.attributes.get(k.rstrip("_")) == v for k, v in attributes.items())
        ]

    def figures(self) -> list[dict[str, Any]]:
        return [json.loads(element.text) for element in self.all("script", type="application/json")]


def measurements(solver: str = "nash_mp", seeds: int = 3, steps: int = 20) -> list[dict[str, Any]]:
    return [
        {
            "solver": solver,
            "seed": seed,
            "step": step,
            "queries": 2 * step,
            "seconds": 0.01 * step,
            "duality_gap": (1 + seed) * 0.5**step,
            "kl_to_equilibrium": (1 + seed) * 0.7**step,
            "span_to_equilibrium": (1 + seed) * 0.9**step,
        }
        for seed in range(seeds)
        for step in range(steps + 1)
    ]


def bound_rows(solver: str = "nash_mp", factor: float = 0.75, steps: int = 20) -> list[dict[str, Any]]:
    return [{"solver": solver, "metric": "kl", "step": n, "bound": 4 * factor**n} for n in range(steps + 1)]


def full(text: str = "plain") -> Report:
    """A report with every kind of section, whose every free text is `text`."""
    rows = [{**row, "solver": text} for row in measurements()] + measurements("online_dpo")
    return (
        Report(f"Title {text}", f"Summary {text}")
        .add_verdict(text, "good")
        .add_verdict(text, "bad")
        .add_text(text, text)
        .add_convergence(rows, bound_rows(text), title=text, note=text)
        .add_curves(text, [{"solver": text, "step": s, "rate": 0.5} for s in range(3)], x="step", y="rate", note=text)
        .add_win_rates([{"policy": text, "judge": text, "wins": 30, "comparisons": 40}], title=text, note=text)
        .add_matrix([text, "b"], [[0.5, 0.7], [0.3, 0.5]], [0.4, 0.6], title=text, note=text)
        .add_distribution([text, "b"], {text: [0.4, 0.6]}, title=text, note=text)
        .add_table(text, ["name", text], [[text, 1.5], {"name": "b", text: None}], caption=text, note=text)
        .add_samples([{"prompt": text, "answers": {text: text}, "remarks": {text: text}}], title=text, note=text)
        .add_command(text, title=text, note=text)
    )


@functools.cache
def full_page(text: str = "plain") -> Page:
    return Page(full(text).html())


def test_page_is_well_formed_and_complete():
    page = full_page()
    assert len(page.all("h1")) == len(page.all("main")) == len(page.all("title")) == 1
    assert len(page.all("section")) == 9
    assert page.all("html")[0].attributes["lang"] == "en"
    targets = {element.attributes["id"] for element in page.elements if "id" in element.attributes}
    links = [element.attributes["href"] or "" for element in page.all("a")]
    assert links
    assert all(link.startswith("#") and link[1:] in targets for link in links)


def test_ids_are_unique():
    ids = [element.attributes["id"] for element in full_page().elements if "id" in element.attributes]
    assert len(ids) == len(set(ids))


def test_page_loads_nothing():
    page = full_page(NASTY)
    for element in page.elements:
        for name in ("src", "srcset", "action", "data", "poster"):
            assert name not in element.attributes, f"<{element.tag} {name}=...>"
        assert element.tag not in {"iframe", "object", "embed", "base"}
    assert [link.attributes["href"] for link in page.all("link")] == ["data:,"]
    policy = [m for m in page.all("meta") if m.attributes.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in (policy[0].attributes["content"] or "")


def test_plotly_is_there_once():
    assert full().html().count("* plotly.js (cartesian") == 1


def test_nasty_text_makes_no_element():
    plain, nasty = full_page(), full_page(NASTY)
    assert [e.tag for e in plain.elements] == [e.tag for e in nasty.elements]
    assert not any(name.startswith("on") for e in nasty.elements for name in e.attributes)
    assert "owned" in nasty.all("h1")[0].text  # it is still shown


def test_nasty_labels_are_escaped_for_plotly_too():
    names = [trace["name"] for figure in full_page(NASTY).figures() for trace in figure["data"] if "name" in trace]
    assert names
    assert not any("<" in name for name in names)
    assert any("&lt;script" in name for name in names)


@given(st.text())
def test_escaped_text_is_one_text_node(text: str):
    page = Page(f"<p>{escape(text)}</p>")
    assert [element.tag for element in page.elements] == ["p"]
    assert not any(ord(character) < 32 and character not in "\n\t" for character in page.elements[0].text)


@example("</script><script>alert(1)</script>")
@example("<!-- <script>")
@given(
    st.recursive(st.none() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
)
def test_embedded_json_cannot_leave_its_element(value: Any):
    text = embed({"value": value})
    assert "<" not in text  # browsers end a script at "</script" and a space, too
    page = Page(f'<script type="application/json">{text}</script>')
    assert [element.tag for element in page.elements] == ["script"]
    json.loads(page.elements[0].text)  # and it is JSON, NaN and infinity left out


def test_table_cells_hold_the_very_numbers():
    values = [0.1 + 0.2, 1e-300, -3.5, 12345678.9, math.inf, 7]
    page = Page(Report("t").add_table("numbers", ["name", "value"], [[f"row {v}", v] for v in values]).html())
    cells = [element.attributes["data-value"] for element in page.all("td", class_="number")]
    assert [float(str(cell)) for cell in cells] == values


def test_table_says_nothing_for_missing_values():
    page = Page(Report("t").add_table("numbers", ["name", "value"], [["a", None], ["b", math.nan]]).html())
    assert [element.text for element in page.all("td", class_="none")] == ["–", "–"]


def test_tables_have_captions_and_scoped_headings():
    page = full_page()
    assert len(page.all("caption")) == len(page.all("table")) > 4
    columns = page.all("th", scope="col")
    assert columns
    assert all(element.attributes["aria-sort"] == "none" for element in columns)
    assert all(element.attributes.get("scope") for element in page.all("th"))


def test_every_figure_is_described():
    page = full_page()
    plots = page.all("div", class_="plot")
    assert len(plots) == len(page.figures()) == len(page.all("figcaption")) == 7
    for plot, caption in zip(plots, page.all("figcaption"), strict=True):
        assert plot.attributes["role"] == "img"
        assert caption.text
        assert caption.text in (plot.attributes["aria-label"] or "")


def test_convergence_draws_medians_ranges_and_bounds():
    figure = Page(Report("t").add_convergence(measurements(), bound_rows()).html()).figures()[1]
    curve, bound = figure["data"]
    assert curve["y"] == pytest.approx([2 * 0.7**n for n in range(21)], rel=1e-5)
    assert curve["low"] == pytest.approx([0.7**n for n in range(21)], rel=1e-5)
    assert curve["high"] == pytest.approx([3 * 0.7**n for n in range(21)], rel=1e-5)
    assert curve["xs"]["queries"] == [2 * n for n in range(21)]
    assert curve["xs"]["steps"] == list(range(21))
    assert "tokens" not in curve["xs"]  # nobody counted any
    assert bound["line"]["dash"] == "dash"
    assert bound["line"]["color"] == curve["line"]["color"]
    assert bound["y"] == pytest.approx([4 * 0.75**n for n in range(21)], rel=1e-5)
    assert bound["xs"]["queries"] == curve["xs"]["queries"]


def test_broken_bounds_are_said():
    good = Report("t").add_convergence(measurements(), bound_rows(factor=0.75)).html()
    bad = Report("t").add_convergence(measurements(), bound_rows(factor=0.6)).html()
    assert "all 63 measured values obey the claimed bound" in good
    assert "measured values lie above the claimed bound" in bad


def test_check_counts_every_seed_and_every_step():
    rows = measurements(seeds=2, steps=3)
    tight = claims(
        [{"solver": "nash_mp", "metric": "kl", "step": n, "bound": 1.5 * 0.7**n} for n in range(4)], "kl_to_equilibrium"
    )
    (check,) = check_claims(rows, tight, "kl_to_equilibrium")
    assert (check.points, check.broken) == (8, 4)
    assert check.worst == pytest.approx(2 / 1.5)


def test_values_below_the_floor_are_clipped_and_said():
    rows = [{**row, "duality_gap": 0.0 if row["step"] > 5 else 1.0} for row in measurements(seeds=1)]
    page = Page(Report("t").add_convergence(rows).html())
    assert min(page.figures()[0]["data"][0]["y"]) == 1e-16
    assert "drawn at 10⁻¹⁶" in page.all("figcaption")[0].text
    assert "drawn at" not in Page(Report("t").add_convergence(measurements()).html()).all("figcaption")[0].text


def test_seed_that_stopped_early_keeps_its_value():
    rows = [row for row in measurements(seeds=3) if row["seed"] > 0 or row["step"] <= 2]
    (curve,) = curves(rows, "duality_gap")
    assert curve.low[-1] == pytest.approx(min(0.5**2, 2 * 0.5**20))
    assert curve.high[-1] == 0.5**2
    assert curve.median[-1] == 3 * 0.5**20


def test_long_runs_are_thinned_but_keep_both_ends():
    (curve,) = curves(measurements(seeds=1, steps=3000), "span_to_equilibrium")
    assert len(curve.steps) <= POINTS
    assert (curve.steps[0], curve.steps[-1]) == (0, 3000)
    assert curve.median == tuple(0.9**n for n in curve.steps)


def test_metric_that_nobody_measured_has_no_figure():
    rows = [{"solver": "a", "step": n, "queries": n, "duality_gap": 0.5, "kl_to_equilibrium": None} for n in range(3)]
    assert len(Page(Report("t").add_convergence(rows).html()).figures()) == 1


def test_win_rates_show_wilson_intervals():
    page = Page(Report("t").add_win_rates([{"policy": "nash_mp", "wins": 0, "comparisons": 10}]).html())
    numbers = [float(str(cell.attributes["data-value"])) for cell in page.all("td", class_="number")]
    assert numbers == pytest.approx([0, 0, 0.277533, 10], abs=1e-5)
    assert page.figures()[0]["layout"]["shapes"][0]["x0"] == 0.5
    assert "below one half" in page.all("figcaption")[0].text


def test_matrix_is_ordered_by_the_equilibrium():
    values = [[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]]
    figure = Page(Report("t").add_matrix(["a", "b", "c"], values, [0.2, 0.5, 0.3]).html()).figures()[0]
    assert figure["layout"]["yaxis"]["ticktext"] == ["b", "c", "a"]
    assert figure["data"][0]["z"] == [[0.5, 0.7, 0.1], [0.3, 0.5, 0.8], [0.9, 0.2, 0.5]]


def test_distribution_shows_the_likeliest_and_says_what_is_left_out():
    labels, values = [f"r{at}" for at in range(50)], [at / 1225 for at in range(50)]
    page = Page(Report("t").add_distribution(labels, {"p": values}, most=5).html())
    assert page.figures()[0]["data"][0]["x"] == values[:-6:-1]
    assert "The 5 likeliest of 50 responses" in page.all("figcaption")[0].text


@pytest.mark.parametrize(
    "secret",
    [
        "--token abcdef123",
        "API_KEY=abcdef123",
        'password: "abcdef123"',
        "https://me:abcdef123@example.org/x",
        "https://abcdef123@example.org/x",
        "'https://example.org/x?a=b&key=abcdef123&c=d'",
        "--oracle-set key=abcdef123",
        "gsk_abcdef123456",
        "hf_abcdef123456",
        "Authorization: Bearer abcdef123",
    ],
)
def test_secrets_are_blotted_out(secret: str):
    assert "abcdef123" not in redact(f"train {secret} --out demo")
    assert redact(f"train {secret} --out demo").startswith("train ")
    assert redact(f"train {secret} --out demo").endswith("--out demo")


def test_ordinary_commands_are_left_alone():
    command = "nlhf-zoo train --max-new-tokens 48 --tokenizer folder --solver nash_mp --out demo"
    assert redact(command) == command


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (12000, "12,000"), (-2.0, "−2"), (0.03125, "0.0312"), (0.5, "0.500"), (25.63, "25.6"),
        (4.7e-9, "4.70 × 10⁻⁹"), (1234.5, "1,234.5"), (None, "–"), (math.nan, "–"), (math.inf, "∞"),
    ],
)  # fmt: skip
def test_numbers_are_written_for_people(value: float | None, text: str):
    assert number(value) == text


def test_solvers_keep_their_colour_whatever_else_is_drawn():
    alone, crowded = Palette(), Palette()
    for name in ("third_party", "another", "online_dpo"):
        _ = crowded[name]
    assert alone["nash_mp"] == crowded["nash_mp"]
    many = Palette()
    inks = [many[name] for name in ("nash_mp", "nash_md", "online_dpo", "online_ipo", "exact_prox", "x", "y", "z")]
    assert len({ink.colour for ink in inks}) == len(inks)


@pytest.mark.parametrize(("shade", "page"), [(0, "#fbfbf9"), (1, "#14181c")])
def test_colours_stand_out_from_the_page(shade: int, page: str):
    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for entry in SHADES:
        lighter, darker = sorted((luminance(entry[shade]), luminance(page)), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 3, entry


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.add_convergence([]), "no row has any of"),
        (lambda r: r.add_convergence([{"solver": "a", "queries": 1, "duality_gap": 1}]), "'step'"),
        (
            lambda r: r.add_convergence([{"solver": "a", "step": "x", "queries": 1, "duality_gap": 1}]),
            "must be a number",
        ),
        (lambda r: r.add_win_rates([]), "no win rates"),
        (lambda r: r.add_win_rates([{"policy": "a", "wins": 5, "comparisons": 4}]), "between 0 and 4"),
        (lambda r: r.add_matrix(["a", "b"], [[0.5, 0.5]]), "square"),
        (lambda r: r.add_matrix(["a"], [[1.5]]), "outside"),
        (lambda r: r.add_distribution(["a"], {"p": [0.5, 0.5]}), "2 probabilities"),
        (lambda r: r.add_table("t", ["a", "b"], [[1]]), "1 values for 2 columns"),
        (lambda r: r.add_samples([{"prompt": "x"}]), "answers"),
    ],
)
def test_bad_input_is_one_clear_line(call: Any, message: str):
    with pytest.raises(BadInput, match=message) as raised:
        call(Report("t"))
    assert "\n" not in str(raised.value)


def test_write_is_whole_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = Report("first").write(tmp_path / "report.html")
    assert "first" in path.read_text("utf-8")

    def fail(self: Path, target: Any) -> Path:
        raise OSError("disk is full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk is full"):
        Report("second").write(path)
    assert "first" in path.read_text("utf-8")
    assert list(tmp_path.iterdir()) == [path]


def test_write_into_no_folder_is_bad_input(tmp_path: Path):
    with pytest.raises(BadInput, match="cannot write the report"):
        Report("t").write(tmp_path / "none" / "report.html")


def test_browser_draws_every_figure_and_runs_no_foreign_script(visit: Any):
    page = visit(full(NASTY))
    for plot in page.locator(".plot").all():
        plot.scroll_into_view_if_needed()
        plot.locator(".main-svg").first.wait_for(state="attached")
    assert page.locator(".plot .main-svg").count() >= 7
    assert page.title() != "owned"
    assert page.locator(".plot a[href]").count() == 0


def test_browser_sorts_by_keyboard(visit: Any):
    page = visit(
        Report("t").add_table("scores", ["name", "score"], [["a", 10.0], ["b", None], ["c", 9.0], ["d", 1e-3]])
    )
    names = page.locator("tbody th")
    page.get_by_role("button", name="score").focus()
    page.keyboard.press("Enter")
    assert names.all_inner_texts() == ["d", "c", "a", "b"]
    assert page.locator("thead th").nth(1).get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Space")
    assert names.all_inner_texts() == ["a", "c", "d", "b"]
    assert page.locator("thead th").nth(1).get_attribute("aria-sort") == "descending"


@pytest.mark.parametrize(("scheme", "other"), [("light", "dark"), ("dark", "light")])
def test_browser_follows_and_toggles_the_colour_scheme(visit: Any, scheme: str, other: str):
    page = visit(full(), scheme=scheme)

    def colours() -> list[str]:
        return page.evaluate(
            "[getComputedStyle(document.body).backgroundColor,"
            " document.querySelector('.plot .scatterlayer path.js-line[style*=\"stroke-width: 2\"]').style.stroke]"
        )

    before = colours()
    page.locator("#theme").click()
    assert page.evaluate("document.documentElement.dataset.theme") == other
    assert all(old != new for old, new in zip(before, colours(), strict=True))
    page.locator("#theme").click()
    assert colours() == before


def test_browser_switches_the_axis_and_hides_a_solver(visit: Any):
    page = visit(Report("t").add_convergence(measurements() + measurements("online_dpo"), bound_rows()))
    plot = "document.querySelector('.plot')"
    assert page.evaluate(f"{plot}.layout.xaxis.type") == "log"
    assert page.evaluate(f"{plot}.layout.yaxis.type") == "log"
    page.get_by_role("radio", name="wall time").check(force=True)
    page.get_by_role("radio", name="linear").check(force=True)
    assert page.evaluate(f"[{plot}.layout.xaxis.type, {plot}.layout.xaxis.title.text]") == [
        "linear",
        "Solver's wall time, seconds",
    ]
    assert page.evaluate(f"{plot}.data[2].x.at(-1)") == pytest.approx(0.2)
    page.get_by_role("checkbox", name="online_dpo").uncheck(force=True)
    assert page.evaluate(f"{plot}.data.filter((trace) => trace.visible === false).length") == 3


def test_browser_fits_a_phone(visit: Any):
    page = visit(full(), width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
