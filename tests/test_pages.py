"""Templates of pages: what is not the program's own is text, and nothing is missing unseen."""

from __future__ import annotations

import jinja2
import pytest

from medkd.pages import page_template


@pytest.fixture
def package(tmp_path, monkeypatch) -> str:
    folder = tmp_path / "a_package_with_pages" / "templates"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("")
    (folder / "page.html").write_text("<b>{{ name | loud }}</b>")
    monkeypatch.syspath_prepend(tmp_path)
    return "a_package_with_pages"


def test_values_are_escaped_also_behind_a_filter(package: str) -> None:
    page = page_template(package, "page.html", {"loud": str.upper})
    assert page.render(name="<i>&") == "<b>&lt;I&gt;&amp;</b>"
    with pytest.raises(jinja2.UndefinedError):
        page_template(package, "page.html", {"loud": lambda text: text}).render()
