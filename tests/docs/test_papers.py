"""The map from papers to configs and files names what exists, and every folder of published sizes."""

import re

from tests.docs.pages import DOCS, REPOSITORY
from tests.test_published import PUBLISHED, RECOUNTED

ROWS = [line for line in (DOCS / "reference/papers.md").read_text(encoding="utf-8").splitlines() if "`" in line]


def test_every_named_file_exists() -> None:
    assert len(ROWS) > 30
    for row in ROWS:
        names = re.findall(r"`([^`]+)`", row)
        assert names, row
        for name in names:
            assert (REPOSITORY / name).is_file(), row


def test_every_family_of_a_published_size_has_a_paper() -> None:
    families = {name.split("/")[0] for name in PUBLISHED.keys() | RECOUNTED.keys()}
    mapped = set(re.findall(r"`configs/([\w.]+)/", "\n".join(ROWS)))
    assert families <= mapped
