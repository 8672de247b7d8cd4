from __future__ import annotations

import json

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
