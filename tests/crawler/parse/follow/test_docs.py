"""The jobs in docs/following.md are whole jobs, whose selectors can be compiled, and its reasons are the code's."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from crawler.fetch.network.credentials import resolve_every
from crawler.job.job import read_job
from crawler.parse import hook

PAGE = (Path(__file__).parents[4] / "docs" / "following.md").read_text()
JOBS = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
(PARSER,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_there_are_examples_of_all_kinds() -> None:
    words = ('"+100"', "json = {", "$header.link", "[kinds.product.parse]", "python =")
    assert all(any(word in job for job in JOBS) for word in words)


@pytest.mark.parametrize("text", JOBS, ids=range(len(JOBS)))
def test_every_example_is_a_job(text: str, folder: Path) -> None:
    (folder / "parse.py").write_text(PARSER)
    job = read_job({"run": {"name": "docs"}, **tomllib.loads(text)}, str(folder))
    assert job.follows
    resolve_every(job.every_kind, {"TOKEN": "t"})
    for one in job.every_kind:
        assert hook.load(job, kind=one.kind) is not None
