"""Tables that the commands print."""

from __future__ import annotations

import io

from rich.console import Console

from medkd.terminal import output_console, print_table


def test_figures_stand_to_the_right_and_words_to_the_left() -> None:
    text = io.StringIO()
    rows = [("a", 7, "1,234", "x"), ("longer", 12, "", "-")]
    console = Console(file=text, width=80)
    print_table("Title", ("name", "few", "many", "word"), rows, console=console)
    lines = text.getvalue().splitlines()
    assert lines[0].rstrip() == "Title"
    assert lines[4:6] == ["│ a      │   7 │ 1,234 │ x    │", "│ longer │  12 │       │ -    │"]


def test_a_pipe_is_wide_enough_for_figures() -> None:
    assert output_console().width == 120
