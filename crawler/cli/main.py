"""The command line: `shardcrawl` and its commands."""

from __future__ import annotations

import sys
from io import TextIOWrapper

import click

from crawler.cli.check import check_command, init_command, schema_command
from crawler.cli.fetch import fetch_command
from crawler.cli.inspect import audit_command, runs_command, sql_command, status_command
from crawler.cli.rows.diff import diff_command
from crawler.cli.rows.export import export_command
from crawler.cli.run import coordinate_command, demo_command, run_command, work_command
from crawler.cli.serve import serve_command
from crawler.cli.steer import limit_command, rebuild_command, retry_command
from crawler.cli.versions import cancel_command, prune_command, publish_command, rollback_command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="shardcrawl")
def main() -> None:
    """Refresh a corpus of keys from a rate-limited upstream into Postgres, exactly once."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal that cannot show a character shows its number
            stream.reconfigure(errors="backslashreplace")


for command in (
    *(run_command, demo_command, coordinate_command, work_command),
    *(status_command, runs_command, sql_command, diff_command, audit_command, export_command),
    *(serve_command, limit_command, retry_command, rebuild_command),
    *(publish_command, rollback_command, cancel_command, prune_command),
    *(init_command, check_command, fetch_command, schema_command),
):
    main.add_command(command)
