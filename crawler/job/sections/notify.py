"""`[notify]`: whom a command notifies of what happens to its run."""

from __future__ import annotations

import re
from typing import Annotated

from coordinator.errors import UsageError
from crawler.job.fields import DURATION, Section, text


# The formatter would give each argument a line of its own.
# fmt: off
class NotifySettings(Section, frozen=True, kw_only=True):
    """Whom `run` and `coordinate` notify that the run is complete, is held back by `[publish]`, or makes no progress.

    Of each event one of the commands that work on the run notifies, once. When that fails it is logged, and nothing of
    the run changes.
    """

    command: Annotated[str, text(
        "A command for the shell, in the job file's folder. Its environment has SHARDCRAWL_EVENT (`complete`, "
        "`held_back` or `stalled`), SHARDCRAWL_RUN and SHARDCRAWL_TEXT; its standard input has these and the "
        "counts, as JSON. REDIS_URL, DATABASE_URL, SHARDCRAWL_TOKEN and what the job has as `${NAME}` are in its "
        'environment only where it names them: `psql "$DATABASE_URL" …`, or '
        '`DATABASE_URL="$DATABASE_URL" ./after.sh`.',
        'mail -s "$SHARDCRAWL_TEXT" me@example.org < /dev/null')] = ""
    webhook: Annotated[str, text(
        "A URL that gets the same JSON by POST. Its member `text` is what chats show.",
        "https://hooks.example.org/${HOOK}")] = ""
    stalled: Annotated[str, text(
        "Tell it when no key has got its outcome for so long, unless the run is paused. A number and `s`, `min` or "
        "`h`.",
        "30min", f"^{DURATION}$", absent="never")] = ""
# fmt: on


def check_notify(notify: NotifySettings) -> None:
    """Raise UsageError for a value of `[notify]` that cannot be used."""
    if notify.stalled and not re.fullmatch(DURATION, notify.stalled):
        raise UsageError(f'job: [notify] stalled is {notify.stalled!r}; write a time like "30min"')
    if notify.webhook and not notify.webhook.startswith(("https://", "http://")):
        raise UsageError("job: [notify] webhook is no URL; write https://…")
