"""From a completion that is given as a text to the tokens that write it."""

from __future__ import annotations

from textgym.task import Task


def given_tokens(task: Task, text: str) -> list[int]:
    """The tokens of a completion, and the stop token where there is room for one.

    Args:
        text: where it ends with the name of a stop token, that is its last token.
    Raises: ValueError if it cannot be written in this task from beginning to end.
    """
    vocabulary, budget = task.vocabulary, task.max_new_tokens
    stops = {vocabulary.codec.token(token): token for token in vocabulary.stop_ids}
    name = next((name for name in stops if name and text.endswith(name)), None)
    try:
        ids = list(vocabulary.codec.encode(text if name is None else text.removesuffix(name)))
    except (ValueError, UnicodeError) as error:
        raise ValueError(f"completion {text!r:.80}: {str(error).removeprefix('prompt: ')}") from error
    early = next((place for place, token in enumerate(ids) if token in vocabulary.stop_ids), None)
    if early is not None:
        raise ValueError(
            f"completion {text!r:.80}: its token {early} is a stop token, allowed at its end only"
        )
    if name is not None:
        ids.append(stops[name])
    elif vocabulary.stop_ids and len(ids) < budget:
        ids.append(vocabulary.stop_ids[0])
    if len(ids) > budget or (len(ids) < budget and not vocabulary.stop_ids):
        allowed = f"1..{budget}" if vocabulary.stop_ids else f"exactly {budget}, there being no stop token"
        raise ValueError(f"completion {text!r:.80}: it has {len(ids)} tokens, allowed are {allowed}")
    return ids
