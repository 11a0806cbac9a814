"""README and pages name only what exists: links, anchors, files, commands, flags; every command block is marked."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import yaml
from markdown.extensions.toc import slugify

from boxsup_dist.errors import InputError
from jobs.results_page import results_page
from tests.docs_blocks import MARK, ROOT, all_blocks, pages

PAGES = pages()
BLOCKS = all_blocks()
SPAN = re.compile(r"`([^`\n]+)`")
FLAG = re.compile(r"--[a-z][\w.-]*")
FOLDERS = ("boxsup_dist/", "jobs/", "tests/", "infra/", "docs/")


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


# -- links -----------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {slugify(heading.replace("`", ""), "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_to_files_and_headings_that_exist(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        linked = (page.parent / file).resolve() if file else page
        assert linked.is_file(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(linked), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_files_that_are_named_exist(page):
    for span in SPAN.findall(prose(page)):
        if span.startswith(FOLDERS) and re.fullmatch(r"[\w./-]+", span):
            assert (ROOT / span).exists(), f"{page.name}: {span}"


def test_the_notebook_is_kept_without_outputs_and_its_links_exist():
    notebook = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text())
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in notebook["cells"])
    text = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    links = [target.partition("#") for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    assert len(links) >= 4
    for file, _, anchor in links:
        assert not anchor or anchor in anchors(ROOT / "docs" / file), file
        assert (ROOT / "docs" / file).is_file(), file


def test_the_navigation_has_every_page():
    found = {file for entry in yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"] for file in entry.values()}
    assert found == {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}


# -- commands and flags ----------------------------------------------------------------------------------------------


def job_names() -> set[str]:
    packages = {path.parent.name for path in (ROOT / "jobs").glob("*/__main__.py")}
    return packages | {path.stem for path in (ROOT / "jobs").glob("*.py") if not path.stem.startswith("_")}


@functools.cache
def help_text(job: str, *words: str) -> str:
    """What `python -m jobs.JOB WORDS --help` prints, run in this process: importing everything once is enough."""
    printed = io.StringIO()
    with (
        mock.patch.object(sys, "argv", [job, *words, "--help"]),
        mock.patch.dict(os.environ, {"COLUMNS": "200"}),
        contextlib.redirect_stdout(printed),
        pytest.raises(SystemExit) as ended,
    ):
        runpy.run_module(f"jobs.{job}", run_name="__main__", alter_sys=True)
    assert ended.value.code == 0, f"{job} {words}: {printed.getvalue()[-500:]}"
    return printed.getvalue()


def selecting(words: list[str]) -> list[str]:
    """The words that choose which options a command has: a recipe, the name of a benchmark, a proposal method."""
    first = next((place for place, word in enumerate(words) if word.startswith("-")), len(words))
    method = words.index("--method") if "--method" in words[:-1] else len(words)
    chosen = [word for word in words[:first] if word != "..." and not word.isupper()]
    return chosen if method == len(words) or words[method + 1].isupper() else [*chosen, *words[method : method + 2]]


def split_commands(words: list[str]) -> Iterator[tuple[str, list[str]]]:
    """(job, its words) for every `python -m jobs.JOB` and `boxsup JOB` in a command; jobs.submit holds a second one."""
    for place, word in enumerate(words):
        if word.startswith("jobs.") or (place > 0 and words[place - 1] == "boxsup"):
            rest = words[place + 1 :]
            yield word.removeprefix("jobs."), rest[: rest.index("--")] if "--" in rest else rest


def written_commands() -> list[tuple[str, str, tuple[str, ...]]]:
    """(where, job, words) of every command of ours in blocks and in spans of code."""
    lines = [(block.where, words) for block in BLOCKS if block.language == "sh" for words in block.commands]
    spans = [(page_id(page), span) for page in PAGES for span in SPAN.findall(prose(page))]
    lines += [
        (where, shlex.split(span)) for where, span in spans if re.match(r"(python -m jobs\.|boxsup |jobs\.)", span)
    ]
    found = [(where, job, tuple(rest)) for where, words in lines for job, rest in split_commands(words)]
    return sorted({entry for entry in found if entry[1] != "NAME"})


COMMANDS = written_commands()


@pytest.mark.parametrize("where, job, words", COMMANDS, ids=[f"{where}-{job}" for where, job, _ in COMMANDS])
def test_commands_and_their_flags_exist(where, job, words):
    assert job in job_names(), f"{where}: jobs.{job}"
    flags = [word.partition("=")[0] for word in words if word.startswith("--")]
    if flags or selecting(list(words)):
        offered = set(FLAG.findall(help_text(job, *selecting(list(words))))) | {"--help"}
        assert set(flags) <= offered, f"{where}: jobs.{job} lacks {sorted(set(flags) - offered)}"


def test_jobs_that_are_named_exist():
    named = {(page.name, job) for page in PAGES for job in re.findall(r"\bjobs\.([a-z_]+)", page.read_text())}
    assert {(page, job) for page, job in named if job not in job_names()} == set()


def test_flags_in_the_text_exist():
    chosen = [
        ("train", ("mini",)),
        *(("build_proposals", ("--method", m)) for m in ("mcg", "gop", "imported", "prompted")),
    ]
    chosen += [(job, ()) for job in job_names() - {"train", "bench"}] + [("build_proposals", ())]
    offered = {flag for job, words in chosen for flag in FLAG.findall(help_text(job, *words))} | {"--help"}
    named = {
        (page.name, FLAG.match(span)[0]) for page in PAGES for span in SPAN.findall(prose(page)) if FLAG.match(span)
    }
    assert {(page, flag) for page, flag in named if flag not in offered} == set()


# -- blocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.where)
def test_every_block_of_commands_says_whether_it_is_run(block):
    assert block.language in ("sh", "python", "text"), block.where
    holds_command = re.search(r"^\s*(python -m|make |boxsup )", block.text, re.MULTILINE) is not None
    assert block.language == "sh" or not holds_command, f"{block.where}: commands are fenced as sh"
    if block.language != "text":
        assert MARK.fullmatch(block.before), f"{block.where}: <!-- run --> or <!-- not run: REASON --> before it"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_stand_in_fences_only(page):
    assert re.search(r"^ {4,}(python -m|make |boxsup )", prose(page), re.MULTILINE) is None


# -- what is generated, and what the README promises -----------------------------------------------------------------


def test_the_results_page_is_what_its_command_writes():
    written = (ROOT / "docs" / "results.md").read_text()
    assert written == results_page(ROOT / "docs" / "results"), "run python -m jobs.results_page"


def test_a_table_without_a_section_is_refused(tmp_path):
    (tmp_path / "index.json").write_text("[]")
    (tmp_path / "forgotten.json").write_text("{}")
    with pytest.raises(InputError, match="forgotten"):
        results_page(tmp_path)


def test_readme_is_short_and_holds_no_commit():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 130
    assert re.findall(r"\b(?=\w*\d)(?=\w*[a-f])[0-9a-f]{7,40}\b", text) == []


def test_pictures_are_small():
    pictures = list((ROOT / "docs" / "images").iterdir())
    assert pictures and all(path.stat().st_size < 300_000 for path in pictures)
