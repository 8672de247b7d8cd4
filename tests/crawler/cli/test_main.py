from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from crawler.cli.main import main
from crawler.job.reference import job_schema


def test_schema_prints_the_schema_of_the_job_file() -> None:
    result = CliRunner().invoke(main, ["schema"])
    assert result.exit_code == 0
    printed = json.loads(result.stdout)
    assert printed == json.loads(json.dumps(job_schema()))
    Draft202012Validator.check_schema(printed)


def test_an_interruption_while_a_command_is_imported_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("crawler.cli.main.import_module", interrupted)
    result = CliRunner().invoke(main, ["runs"])
    assert (result.exit_code, result.output) == (130, "")


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_status_is_watched_in_a_terminal_only(options: list[str]) -> None:
    result = CliRunner().invoke(main, ["status", "--watch", *options])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "error: status --watch needs a terminal; a program calls `status --json` again and again\n"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[run]\nname = "x"\n[source]\npath = "u"\n[request]\nurl = "http://h/{ke}"\n', "{ke}"),
        ('[run]\nname = "x"\n[source]\npath = "u"\n[request]\nurl = "http://h/"\n', "placeholders"),
        ('[run]\nname = "x"\n[source]\ntable = "t"\n', "not yet"),
        ("[run\n", "job.toml"),
    ],
)
def test_a_job_file_that_is_wrong_is_one_line_and_exit_code_2(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "job.toml"
    path.write_text(text)
    result = CliRunner().invoke(main, ["run", str(path)])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert says in result.stderr
