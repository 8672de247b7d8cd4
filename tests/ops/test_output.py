"""Where the benchmarks put what they measured."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from ops.bench.watch import output_folder


def test_the_folder_of_the_results_is_made_before_anything_is_measured(tmp_path: Path) -> None:
    assert output_folder(str(tmp_path / "a" / "b")).is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(argparse.ArgumentTypeError, match="cannot be made: .*; name another folder"):
        output_folder(str(tmp_path / "file"))
