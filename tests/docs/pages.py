"""Read the documentation: its pages, fenced blocks, commands, code spans, links and headings."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OWN = ("lra-run", "lra-sweep", "lra-bench", "lra-report", "lra-data", "lra-zoo", "lra-doctor")
SHELL = ("console", "bash", "sh", "shell")
FENCE = re.compile(r"^(`{3,})(\w*)\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
ASSIGNMENT = re.compile(r"[A-Z_]+=")


@dataclass(frozen=True)
class Page:
    """A page of the documentation, or a made-up one in its place."""

    path: Path
    text: str

    @property
    def prose(self) -> str:
        """The page without its fenced blocks."""
        return FENCE.sub("", self.text)


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: Path
    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """One command of a shell block: its words, and the variables set in front of it."""

    page: Path
    words: tuple[str, ...]
    variables: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.page.name}: {shlex.join(self.words)}"


def pages(root: Path = ROOT) -> list[Page]:
    """Return every page: those at the top and all of docs/."""
    paths = [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").rglob("*.md"))]
    return [Page(path, path.read_text(encoding="utf-8")) for path in paths]


def blocks(page: Page) -> list[Block]:
    return [Block(page.path, language, text) for _, language, text in FENCE.findall(page.text)]


def commands(block: Block, known: tuple[str, ...]) -> list[Command]:
    """Split a shell block into commands. Other blocks have none.

    A block is a shell block if its language says so, or if it has no language and begins with a known program. If
    some of its lines begin with `$ `, these are the commands and the others are output. Otherwise every line is a
    command.
    """
    lines = block.text.replace("\\\n", " ").splitlines()
    prompted = any(line.startswith("$ ") for line in lines)
    if prompted:
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    elif block.language not in SHELL and (block.language or not begins_with(lines[0], known)):
        return []
    found = []
    for line in lines:
        for part in split(line):
            names = [word for word in part if ASSIGNMENT.match(word)]
            first = next((index for index, word in enumerate(part) if not ASSIGNMENT.match(word)), len(part))
            if part[first:]:
                found.append(Command(block.page, tuple(part[first:]), tuple(names[:first])))
    return found


def begins_with(line: str, known: tuple[str, ...]) -> bool:
    words = [word for word in line.split() if not ASSIGNMENT.match(word)]
    return bool(words) and words[0] in known


def split(line: str) -> list[list[str]]:
    """Split a line of shell into words, at `&&`, `|` and `;`, without its comment and redirections."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|<>")
    lexer.wordchars += "[]{}:@,+%$"
    parts: list[list[str]] = [[]]
    words = iter(lexer)
    for word in words:
        if set(word) <= set(";&|"):
            parts.append([])
        elif set(word) <= set("<>"):
            next(words, None)
        else:
            parts[-1].append(word)
    return [part for part in parts if part]


def spans(page: Page) -> list[str]:
    """Return the code spans of the prose, including those that cross the end of a line."""
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", page.prose)]


def links(page: Page) -> list[str]:
    """Return the targets of links and images outside code spans."""
    prose = re.sub(r"(?<!`)`[^`]+`(?!`)", "code", page.prose)
    return re.findall(r"\]\(([^()\s]+(?:\([^()\s]*\)[^()\s]*)*)\)", prose)


def anchors(page: Page) -> set[str]:
    """Return the anchors of the headings, as GitHub makes them."""
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#+ +(.*?) *$", page.prose, re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        names.add(f"{slug}-{found[slug]}" if slug in found else slug)
        found[slug] = found.get(slug, 0) + 1
    return names


def dead_links(page: Page) -> list[str]:
    """Return the links that lead nowhere: a missing file, a missing heading, or an address without https."""
    dead = []
    for link in links(page):
        if re.match(r"\w+:", link):
            dead += [] if link.startswith("https://") else [link]
            continue
        name, _, anchor = link.partition("#")
        target = page.path.parent / name
        if not target.exists():
            dead.append(link)
        elif anchor:
            there = Page(target, target.read_text(encoding="utf-8")) if name else page
            dead += [] if anchor in anchors(there) else [link]
    return dead
