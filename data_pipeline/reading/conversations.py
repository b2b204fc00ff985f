"""Dialogues for supervised fine-tuning, read from MiniMind's and Alpaca's formats.

The result is a list of turns: an optional system turn, then user and assistant alternate; the assistant is last.
"""

from typing import Any

from data_pipeline.schema.rejects import Reason
from data_pipeline.tokens.chat_template import Turn

_ROLE_NAMES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
}


def turns_of(turns: Any) -> list[Turn] | Reason:
    """Turns of MiniMind's format, a list of {"role": .., "content": ..} or {"from": .., "value": ..}.

    A final question without an answer is removed.

    Returns:
        The turns, or the reason for rejecting the row.
    """
    if not isinstance(turns, list) or not turns:
        return Reason.NO_TURNS
    parts: list[Turn] = []
    for turn in turns:
        if not isinstance(turn, dict):
            return Reason.MALFORMED_TURN
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            return Reason.MALFORMED_TURN
        name = _ROLE_NAMES.get(role.strip().lower())
        if name is None:
            return Reason.UNKNOWN_ROLE
        if not content.strip():
            return Reason.EMPTY_TURN
        parts.append((name, content))
    if parts[-1][0] == "user":
        parts.pop()
    asked = parts[1:] if parts and parts[0][0] == "system" else parts
    if not asked:
        return Reason.NO_ANSWER
    if any(name != ("user", "assistant")[index % 2] for index, (name, _) in enumerate(asked)):
        return Reason.TURN_ORDER
    return parts


def alpaca_turns_of(row: dict[str, Any]) -> list[Turn] | Reason:
    """Turns of Alpaca's format: instruction, input (optional), output; `history` lists earlier (question, answer).

    Returns:
        The turns, or the reason for rejecting the row.
    """
    instruction, given, output = row.get("instruction"), row.get("input") or "", row.get("output")
    history = row.get("history") or []
    if not all(isinstance(part, str) for part in (instruction, given, output)) or not isinstance(history, list):
        return Reason.MALFORMED_TURN
    turns: list[dict[str, Any]] = []
    for pair in history:
        if not isinstance(pair, list) or len(pair) != 2:
            return Reason.MALFORMED_TURN
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    question = f"{instruction}\n{given}" if str(given).strip() else str(instruction)
    if not str(output).strip():
        return Reason.NO_ANSWER
    return turns_of([*turns, {"role": "user", "content": question}, {"role": "assistant", "content": output}])
