"""The documentation holds: its commands run as they stand, its links and flags exist.

How a command is run, and what is made small for it, is said in `tests/documented.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from devnet_jax.config import require_setting
from tests.conftest import REPOSITORY
from tests.documented import Workplace

PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in REPOSITORY.glob("docs/*.md"))]
PROGRAMS = (
    "devnet_jax/main.py", "devnet_jax/pods/*.py", "launch/*.py", "examples/*.py", "benchmarks/*.py"
)  # fmt: skip
# Of absl, which all our programs have; and of programs that are not ours.
OTHER_FLAGS = {
    "help", "verbosity",
    "no-deps", "no-index", "find-links", "dest",  # pip
    "data-binary", "logdir", "constraint", "recursive",  # curl, tensorboard, sbatch, gcloud
}  # fmt: skip


def text(page: str) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """Language and content of each block of code."""
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text(page), re.MULTILINE | re.DOTALL):
        yield found[1], found[2]


def prose(page: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text(page), flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    with Workplace(tmp_path_factory.mktemp("documented")) as workplace:
        yield workplace


@pytest.fixture(scope="module")
def read_before(workplace: Workplace) -> Workplace:
    """The workplace of somebody who has done what the README says: there is a run, and a file."""
    run_blocks(workplace, "README.md")
    return workplace


def run_blocks(workplace: Workplace, page: str) -> None:
    for language, content in blocks(page):
        if language == "sh":
            workplace.shell(content)
        elif language == "python":
            workplace.python(content)
        else:
            assert language == "text", f"{page}: a block of {language!r}, which nobody tests"


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_run(read_before: Workplace, page: str) -> None:
    if page != "README.md":
        run_blocks(read_before, page)
    else:
        for place in ("runs/my_parts/report.html", "predicted/predictions.csv", "where.png"):
            assert (read_before.folder / place).stat().st_size > 0


@pytest.mark.slow
def test_the_first_detector_is_made_and_used(workplace: Workplace) -> None:
    workplace.shell(".venv/bin/python examples/first_detector.py --quick")
    for place in ("detector.devnet", "where.png", "run/report.html"):
        assert (workplace.folder / "runs/first_detector" / place).stat().st_size > 0


def test_a_command_without_a_rule_fails(workplace: Workplace) -> None:
    with pytest.raises(AssertionError, match="frobnicate"):
        workplace.shell("frobnicate --all")
    with pytest.raises(AssertionError, match="no rule"):
        workplace.shell(".venv/bin/python scripts/unheard_of.py")
    with pytest.raises(AssertionError, match="no such extra"):
        workplace.shell('pip install -e ".[cuda11]"')


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found[slug] = found.get(slug, 0) + 1
    return {f"{slug}-{i}" if i else slug for slug, count in found.items() for i in range(count)}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    here = REPOSITORY / page
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose(page))):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        place = (here.parent / name).resolve() if name else here
        assert place.exists(), f"{page}: {target}"
        assert place.is_relative_to(REPOSITORY), f"{page}: {target}"
        if anchor:
            assert anchor in slugs(place), f"{page}: {target}: no such heading"


def test_every_page_is_found_from_the_front_door() -> None:
    linked = set(re.findall(r"\]\((docs/[\w.]+\.md)\)", text("README.md")))
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
    for path in re.findall(r"`((?:devnet_jax|configs|launch|examples|tests)/[\w./]*)", prose(page)):
        if path != "devnet_jax/data/builders/castings.py":  # which is the reader's
            assert (REPOSITORY / path).exists(), f"{page}: {path}"
