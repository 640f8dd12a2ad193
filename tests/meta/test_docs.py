"""The documentation runs: its Python blocks, and the commands, links and paths that it names."""

import ast
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=indent)```", re.M | re.S
)
LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)(?:\s+\"[^\"]*\")?\)")
REPOSITORY_PATH = re.compile(r"`((?:src|tests|docs|benchmarks|\.ci)/[\w./-]+)`")
SHELLS = {"bash", "sh", "shell", "console"}
# Made by a command that the reader runs, so absent from a fresh clone.
GENERATED = ("demo/report",)


def page_id(page):
    return page.relative_to(ROOT).as_posix()


def blocks(page, languages):
    for match in FENCE.finditer(page.read_text("utf-8")):
        words = match["info"].split()
        if words and words[0] in languages:
            yield match["body"]


def commands(page):
    """The shell commands of a page, continuation lines joined, comments and prompts removed."""
    for body in blocks(page, SHELLS):
        for line in body.replace("\\\n", " ").splitlines():
            words = shlex.split(line.strip().removeprefix("$ "), comments=True)
            while words and re.fullmatch(r"\w+=.*", words[0]):
                words = words[1:]
            if words:
                yield words


def prose(page):
    return FENCE.sub("", page.read_text("utf-8"))


@cache
def help_text(*command):
    """What `sample-attention <command> --help` prints; fails when there is no such command."""
    done = subprocess.run(
        [Path(sys.executable).with_name("sample-attention"), *command, "--help"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"},
    )
    assert done.returncode == 0, f"sample-attention {' '.join(command)}: {done.stderr}"
    return done.stdout


@cache
def make_targets():
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))


@cache
def extras():
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    section = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    return set(re.findall(r"^(\w+) =", section, re.M))


def complain(words):
    """What is wrong with a command of the documentation; None when it would work."""
    program, *rest = words
    options = {w.split("=")[0] for w in rest if re.match(r"--?[a-zA-Z]", w)}
    plain = [w for w in rest if not w.startswith("-") and "=" not in w]
    if program == "make":
        unknown = set(plain) - make_targets()
        return f"make has no target {unknown}" if unknown else None
    if Path(program).name == "sample-attention":
        nested = plain[:1] == ["bench"] or plain[:2] == ["eval", "report"]
        command = plain[: 2 if nested else 1]
        text = help_text(*command)
        unknown = {o for o in options if not re.search(rf"(?<![\w-]){o}(?![\w-])", text)}
        return f"sample-attention {command} has no option {unknown}" if unknown else None
    if "install" in rest:
        named = re.findall(r"(?:sample-attention|\.)\[([\w,-]+)\]", " ".join(rest))
        unknown = {e for names in named for e in names.split(",")} - extras()
        return f"the package has no extra {unknown}" if unknown else None
    return None


def anchors(page):
    """The anchors of a page: its headings, as mkdocs and GitHub write them."""
    headings = re.findall(r"^#+ +(.+?)\s*$", prose(page), re.M)
    plain = [re.sub(r"[`*]|\{.*\}$", "", h).strip().lower() for h in headings]
    explicit = re.findall(r"\{ *#([\w-]+) *\}|<a id=\"([\w-]+)\"", page.read_text("utf-8"))
    slugs = {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", h)).strip("-") for h in plain}
    return slugs | {a or b for a, b in explicit}


def test_there_is_documentation():
    assert {"README.md", "docs/index.md", "docs/tutorials/first-call.md"} <= {
        page_id(p) for p in PAGES
    }
    assert list(blocks(ROOT / "README.md", {"python"})), "README.md shows no Python"


PYTHON_PAGES = [p for p in PAGES if any(blocks(p, {"python"}))]


@pytest.mark.parametrize("page", PYTHON_PAGES, ids=page_id)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    mktestdocs = pytest.importorskip("mktestdocs")
    monkeypatch.chdir(tmp_path)
    mktestdocs.check_md_file(page, memory=True)


def test_python_blocks_are_marked_python():
    """mktestdocs runs blocks whose whole info string is `python`; another spelling would hide."""
    hidden = [
        (page_id(page), match["info"])
        for page in PAGES
        for match in FENCE.finditer(page.read_text("utf-8"))
        if match["info"] != "python" and re.match(r"\s*(py|python)\b", match["info"])
    ]
    assert not hidden, f"write ```python, so that the block is run: {hidden}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_exist(page):
    found = [text for text in map(complain, commands(page)) if text]
    assert not found, f"{page_id(page)}: {found}"


@pytest.mark.parametrize(
    "line",
    [
        "make no-such-target",
        "sample-attention doctor --no-such",
        "sample-attention bench ttft --density 0.1",
        "pip install 'sample-attention[no]'",
    ],
)
def test_the_check_of_commands_objects(line):
    assert complain(shlex.split(line))


def test_extras_that_errors_name_exist():
    sources = (ROOT / "src").rglob("*.py")
    named = {
        n for s in sources for n in re.findall(r'require\("[\w.]+", "(\w+)"', s.read_text("utf-8"))
    }
    assert named, "no optional package goes through require()"
    assert named <= extras(), f"the package has no extra {named - extras()}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_resolve(page):
    broken = []
    for match in LINK.finditer(prose(page)):
        path, _, anchor = match["target"].partition("#")
        if re.match(r"[a-z]+:", path) or path.startswith(GENERATED):
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (
            anchor and target.suffix == ".md" and anchor not in anchors(target)
        ):
            broken.append(match["target"])
    assert not broken, f"{page_id(page)} links to what is not there: {broken}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_named_paths_exist(page):
    missing = [p for p in REPOSITORY_PATH.findall(prose(page)) if not (ROOT / p).exists()]
    assert not missing, f"{page_id(page)} names what is not there: {missing}"


def test_every_page_stands_in_the_navigation():
    listed = set(re.findall(r"([\w/.-]+\.md)\s*$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.M))
    written = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")}
    assert listed == written, f"only listed: {listed - written}; only written: {written - listed}"


def test_the_reference_is_that_of_the_code():
    script = ROOT / "benchmarks" / "pages" / "reference.py"
    done = subprocess.run(
        [sys.executable, script, "--check"], capture_output=True, text=True, check=False
    )
    assert not done.returncode, f"python {script.relative_to(ROOT)} writes it: {done.stderr}"


TROUBLE = ROOT / "docs" / "how-to" / "troubleshoot.md"
OURS = re.compile(r"Invalid|Unsupported|unsupported|PlanMismatch|NotFound|TooLong|MissingExtra")
SHORTEST = 8
"""Letters of a piece of a message that say which one it is."""


def pieces(page):
    """What the first cells of a page's tables quote of messages, without the values."""
    for line in page.read_text("utf-8").splitlines():
        if line.startswith("| "):
            quoted = re.findall(r"`([^`]+)`", line.split(" | ")[0])
            found = (x.strip() for text in quoted for x in text.split("…"))
            yield from (x for x in found if len(x) >= SHORTEST)


def literal(node):
    """The text of an expression, with … in the place of values."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(literal(x) if isinstance(x, ast.Constant) else "…" for x in node.values)
    return "…"


def messages(source):
    """What the package raises on purpose."""
    for node in ast.walk(ast.parse(source)):
        call = node.exc if isinstance(node, ast.Raise) else None
        if isinstance(call, ast.Call) and OURS.search(ast.unparse(call.func)):
            yield " ".join(literal(x) for x in call.args)


def test_every_refusal_stands_on_the_page_on_trouble():
    known = list(pieces(TROUBLE))
    rooms = [p for p in (ROOT / "src/sample_attention").rglob("*.py")
             if not {"lab", "cli"} & {*p.parts}]  # fmt: skip
    raised = [x for p in rooms for x in messages(p.read_text("utf-8"))]
    assert len(raised) > len(rooms) // 2, "the package raises nothing"
    unknown = [
        x for x in raised if len(x.strip(" …")) >= SHORTEST and not any(k in x for k in known)
    ]
    assert not unknown, f"{page_id(TROUBLE)} says nothing of {unknown}"


def test_what_the_page_on_trouble_quotes_is_said():
    source = "\n".join(
        re.sub(r"[\"']\s*\n\s*f?[\"']", "", p.read_text("utf-8"))
        for p in (ROOT / "src").rglob("*.py")
    )
    tables = TROUBLE.read_text("utf-8").split("| message | means | do |")[1:]
    quoted = [x for x in pieces(TROUBLE) if any(x in table for table in tables)]
    assert quoted, "the page has no tables of messages"
    missing = [x for x in quoted if x not in source]
    assert not missing, f"nothing says {missing}"


def test_length_of_sentences(record_property):
    """Reported, not enforced: nine of ten sentences of the pages are no longer than this."""
    text = "\n".join(prose(p) for p in (ROOT / "docs").rglob("*.md"))
    plain = re.sub(r"^(?:\||#|:::|<!--|!\[).*$", "", text, flags=re.M)
    sentences = [len(s.split()) for s in re.split(r"(?<=[.!?:;])\s+|\n\s*\n|\n\s*[-*] ", plain)]
    words = sorted(n for n in sentences if n > 2)
    assert words, "the pages have no sentence"
    p90 = words[len(words) * 9 // 10]
    record_property("words per sentence, 90th percentile", p90)
    sys.stdout.write(f"words per sentence: median {words[len(words) // 2]}, p90 {p90}\n")


MAX_PAGE_LINES, MAX_DECISION_LINES = 400, 40
DECISIONS = sorted((ROOT / "docs/explanation/decisions").glob("[0-9]*.md"))
STUDIES = sorted((ROOT / "docs/research/studies").glob("*.md"))
SOURCE = re.compile(
    r"benchmarks/records/\w|research/(?:studies|performance|evaluation)|not recorded"
)


def too_long(text, most):
    lines = len(text.splitlines())
    return [f"{lines} lines, at most {most}"] if lines > most else []


def decision_complaints(text):
    """Faults of a decision page: its length, its headings, and the source of its evidence."""
    found = too_long(text, MAX_DECISION_LINES)
    headings = re.findall(r"^## (.+)$", text, re.M)
    if headings != ["Context", "Choice", "Evidence", "Status"]:
        found.append(f"headings {headings}")
    evidence = text.partition("## Evidence")[2].partition("## Status")[0]
    if not SOURCE.search(evidence.replace("Not recorded", "not recorded")):
        found.append("the evidence names no record and no study; or say 'not recorded'")
    return found


@pytest.mark.parametrize("page", DECISIONS, ids=page_id)
def test_a_decision_is_short_and_names_its_evidence(page):
    assert not decision_complaints(page.read_text("utf-8"))


def test_decisions_are_numbered_one_after_another():
    numbers = [int(page.name[:4]) for page in DECISIONS]
    assert numbers == list(range(1, len(DECISIONS) + 1))
    listed = (ROOT / "docs/explanation/decisions/index.md").read_text("utf-8")
    assert not [page.name for page in DECISIONS if f"({page.name})" not in listed]


@pytest.mark.parametrize("page", STUDIES, ids=page_id)
def test_a_study_names_its_record(page):
    (record,) = re.findall(r"^Record: (.+?)\n\n", page.read_text("utf-8"), re.M | re.S)
    assert "not recorded" in record or SOURCE.search(record) or "](" in record


def test_every_study_stands_in_the_index():
    listed = (ROOT / "docs/research/index.md").read_text("utf-8")
    assert STUDIES
    assert not [page.name for page in STUDIES if f"(studies/{page.name})" not in listed]


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=page_id)
def test_pages_are_not_long(page):
    assert not too_long(page.read_text("utf-8"), MAX_PAGE_LINES)


GOOD = (
    "# 1\n## Context\nc\n## Choice\nc\n## Evidence\nBy hand, not recorded.\n## Status\nIn force.\n"
)


@pytest.mark.parametrize(
    "text",
    [
        GOOD + "x\n" * MAX_DECISION_LINES,
        GOOD.replace("## Choice", "## What"),
        GOOD.replace("not recorded", "I think"),
        GOOD.replace("By hand, not recorded.", "").replace("In force.", "not recorded"),
    ],
)
def test_the_check_of_decisions_objects(text):
    assert not decision_complaints(GOOD)
    assert decision_complaints(text)


MAX_COLUMNS = 100
WRAPPED = [p for p in PAGES if p.name != "CHANGELOG.md"]


def wide_lines(text):
    """Lines of prose beyond the width of code; a table, a link, or what a script made may be."""
    written = re.sub(r"<!-- (\S+):start -->.*?<!-- \1:end -->", "", FENCE.sub("", text), flags=re.S)
    return [
        line
        for line in written.splitlines()
        if len(line) > MAX_COLUMNS and not line.startswith("|") and "](" not in line
    ]


@pytest.mark.parametrize("page", WRAPPED, ids=page_id)
def test_prose_is_wrapped(page):
    assert not wide_lines(page.read_text("utf-8"))


def test_the_check_of_width_objects():
    wide = "word " * 30
    assert wide_lines(wide)
    assert not wide_lines(f"| {wide} |\n```\n{wide}\n```\n<!-- x:start -->\n{wide}\n<!-- x:end -->")
