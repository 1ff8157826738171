"""The pages of the documentation and the code blocks in them."""

import re
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
README = REPOSITORY / "README.md"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]
RECIPES = [path for path in sorted((DOCS / "extending").glob("*.md")) if path.stem != "index"]
CODE_BLOCK = re.compile(r'^```(\w+)(?: title="(.*?)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class CodeBlock:
    """A fenced code block.

    Attributes:
        page: the page that holds it.
        line: number of its first line, from 1.
        language: the word after the fence.
        title: its title, which is the path of the file that it shows; empty if it has none.
        text: its content.
    """

    page: Path
    line: int
    language: str
    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"


def code_blocks(page: Path, *languages: str) -> list[CodeBlock]:
    """Return the code blocks of a page in these languages, or in all."""
    text = page.read_text(encoding="utf-8")
    blocks = []
    for match in CODE_BLOCK.finditer(text):
        if not languages or match[1] in languages:
            line = text.count("\n", 0, match.start(3)) + 1
            blocks.append(CodeBlock(page, line, match[1], match[2] or "", match[3]))
    return blocks


def all_code_blocks(*languages: str) -> list[CodeBlock]:
    """Return the code blocks of all pages in these languages."""
    return [block for page in PAGES for block in code_blocks(page, *languages)]


def commands(block: CodeBlock) -> list[str]:
    """Return the commands of a shell block, continuation lines joined; of a console block, those after a prompt."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [line for line in lines if line.strip() and not line.startswith("#")]


def page_name(page: Path) -> str:
    """Return the path of a page from the root of the repository, as the name of a test case."""
    return str(page.relative_to(REPOSITORY))
