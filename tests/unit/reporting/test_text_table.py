"""Tables as text, Markdown and HTML hold the same cells."""

from boxsup_dist.reporting.text_table import format_table, to_html, to_markdown

ROWS = [{"row": "a<b", "ours": 47.512}, {"row": "c|d", "ours": None, "paper": 62.0}]


def test_the_same_cells_in_every_form():
    for text in (format_table(ROWS, "T"), to_markdown(ROWS, "T")):
        assert "47.51" in text and "paper" in text and "62" in text
    assert to_markdown(ROWS).splitlines()[1:] == ["| --- | --- | --- |", "| a<b | 47.51 | - |", "| c\\|d | - | 62 |"]
    page = to_html(ROWS, "T & U")
    assert "<th>row</th><th>ours</th><th>paper</th>" in page and "a&lt;b" in page and "T &amp; U" in page
    assert page.startswith("<!doctype html>") and "http" not in page and "<script" not in page
