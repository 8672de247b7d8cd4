"""Pure: found keys without the secrets of the job's URLs, which upstreams send back in their links."""

from __future__ import annotations

from collections.abc import Callable

from coordinator.model import FoundKey
from coordinator.queue.sharding import digest
from crawler.parse.follow.lists import params_key


def without_secrets(found: FoundKey, hidden: Callable[[str], str]) -> FoundKey:
    """The same key as it is stored: `hidden` puts ${NAME} in the place of each secret.

    A parameter that is a secret is left out, because the request of the list's key has it.
    """
    context = found.context
    params = {
        name: hidden(value) if isinstance(value, str) else value
        for name, value in context.params.items()
        if not (isinstance(value, str) and hidden(value) != value and hidden(value).startswith("${"))
    }
    if params != context.params:
        context = context._replace(params=params)
    key = params_key(context.list_key, params) if params else hidden(found.key)
    if key == found.key and context is found.context:
        return found
    return found._replace(digest=digest(key, context), key=key, context=context)
