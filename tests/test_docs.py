"""Tests of the documentation: commands run as they stand; links, flags, settings and paths exist.

`tests/documented.py` runs the commands, with small settings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from devnet_jax.config import require_setting
from tests.conftest import REPOSITORY
from tests.documented import Workplace

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(f"docs/{path.name}" for path in REPOSITORY.glob("docs/*.md")),
]
PROGRAMS = ("devnet_jax/**/*.py", "launch/*.py", "examples/*.py", "benchmarks/*.py")
# Flags of absl and of other projects' programs.
OTHER_FLAGS = {
    "help", "verbosity",
    "no-deps", "no-index", "find-links", "dest",  # pip
    "tag", "rm", "user", "volume", "publish", "entrypoint", "network", "install",  # docker, wsl
    "data-binary", "logdir", "constraint", "recursive",  # curl, tensorboard, sbatch, gcloud
}  # fmt: skip


def text(page: str) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """Yields the language and the content of each code block of a page."""
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text(page), re.MULTILINE | re.DOTALL):
        yield match[1], match[2]


def prose(page: str) -> str:
    """Returns a page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", text(page), flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    with Workplace(tmp_path_factory.mktemp("documented")) as workplace:
        yield workplace


@pytest.fixture(scope="module")
def after_readme(workplace: Workplace) -> Workplace:
    """The workplace after the README's commands: it has a run and an exported file."""
    run_blocks(workplace, "README.md")
    return workplace


def run_blocks(workplace: Workplace, page: str) -> None:
    for language, content in blocks(page):
        if language == "sh":
            workplace.shell(content)
        elif language == "python":
            if not content.startswith("# devnet_jax/"):  # recipes: tests/test_recipes.py
                workplace.python(content)
        else:
            assert language == "text", f"{page}: no test for blocks of {language!r}"


def test_the_commands_of_the_readme_run(after_readme: Workplace) -> None:
    for path in ("runs/my_parts/report.html", "predicted/predictions.csv", "where.png"):
        assert (after_readme.folder / path).stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES[1:] if any(blocks(page))])
def test_the_commands_run(after_readme: Workplace, page: str) -> None:
    run_blocks(after_readme, page)


@pytest.mark.slow
def test_the_first_detector_runs(workplace: Workplace) -> None:
    workplace.shell(".venv/bin/python examples/first_detector.py --quick")
    for path in ("detector.devnet", "where.png", "run/report.html"):
        assert (workplace.folder / "runs/first_detector" / path).stat().st_size > 0


def test_a_command_without_a_rule_fails(workplace: Workplace) -> None:
    with pytest.raises(AssertionError, match="frobnicate"):
        workplace.shell("frobnicate --all")
    with pytest.raises(AssertionError, match="no rule"):
        workplace.shell(".venv/bin/python scripts/unheard_of.py")
    with pytest.raises(AssertionError, match="no such extra"):
        workplace.shell('pip install -e ".[cuda11]"')


def slugs(page: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub makes them."""
    counts: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        counts[slug] = counts.get(slug, 0) + 1
    return {f"{slug}-{i}" if i else slug for slug, count in counts.items() for i in range(count)}


@pytest.mark.parametrize("page", PAGES)
def test_links_exist(page: str) -> None:
    source = REPOSITORY / page
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose(page))):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = (source.parent / name).resolve() if name else source
        assert path.exists(), f"{page}: {target}"
        assert path.is_relative_to(REPOSITORY), f"{page}: {target}"
        if anchor:
            assert anchor in slugs(path), f"{page}: {target}: no such heading"


def test_the_readme_links_every_page() -> None:
    linked = set(re.findall(r"\]\(([\w./]+\.md)\)", text("README.md")))
    assert linked >= set(PAGES[1:])


def known_flags() -> set[str]:
    names = set(OTHER_FLAGS)
    for pattern in PROGRAMS:
        for program in REPOSITORY.glob(pattern):
            names.update(re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"", program.read_text()))
            names.update(re.findall(r"add_argument\(\s*\"--([\w-]+)\"", program.read_text()))
    return names


@pytest.mark.parametrize("page", PAGES)
def test_flags_and_settings_exist(page: str) -> None:
    known = known_flags()
    for flag in re.findall(r"(?<![\w-])--([a-zA-Z][\w-]*(?:\.[a-z_]+)*)", text(page)):
        name, _, setting = flag.partition(".")
        assert name in known or name.removeprefix("no") in known, f"{page}: --{flag}"
        if setting:
            require_setting(setting)


@pytest.mark.parametrize("page", PAGES)
def test_paths_in_the_text_exist(page: str) -> None:
    """Checks paths relative to the repository, and, in libraries.md, to the package."""
    paths = re.findall(r"`((?:devnet_jax|configs|launch|examples|tests)/[\w./]*)", prose(page))
    if page == "docs/libraries.md":
        paths += re.findall(r"`([a-z]\w*/[\w/]*(?:\.\w+)?)`", prose(page))
    for path in paths:
        if path != "devnet_jax/data/datasets/castings.py":  # the reader writes it
            exists = any((root / path).exists() for root in (REPOSITORY, REPOSITORY / "devnet_jax"))
            assert exists, f"{page}: {path}"
