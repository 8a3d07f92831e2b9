"""What is said on the way, where nobody watches a bar."""

from __future__ import annotations

import pytest

from nlhf_zoo.cli import terminal


def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, seconds: float, cells: int) -> list[str]:
    """The lines about 1,000 cells of so many seconds each, which begin after 100 that were there already."""
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    with terminal.progress_bar("compare", None, lines=True) as move:
        assert move is not None
        for done in range(100, 100 + cells):
            move(done, total=1000)
            now[0] += seconds
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_a_line_at_every_tenth(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = said(capsys, monkeypatch, 0.1, 900)
    assert [line.split()[1] for line in lines] == ["200", "300", "400", "500", "600", "700", "800", "900"]
    assert lines[0] == "compare: 200 of 1,000 done after 10 s"


def test_a_line_every_half_minute(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = said(capsys, monkeypatch, 7.0, 11)
    assert lines == ["compare: 105 of 1,000 done after 35 s", "compare: 110 of 1,000 done after 70 s"]


def test_what_is_quick_says_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert said(capsys, monkeypatch, 0.001, 900) == []


def test_no_table_steers_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    nasty = "\x1b[2Jred [red]b[/red]\u202e"
    terminal.console().print(terminal.table(nasty, (nasty,), [[nasty]]))
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert shown.count("[red]b[/red]") == 3, "labels are no markup"
