"""Dialogues for supervised fine-tuning, of MiniMind's and alpaca's form, as turns: an optional system turn, then user
and assistant in turn, the assistant last."""

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
    """MiniMind's form, a list of {"role": .., "content": ..}; also {"from": .., "value": ..}.

    An optional system turn, then user and assistant in turn; a last question without answer is left out.
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
    if any(name != ("user", "assistant")[place % 2] for place, (name, _) in enumerate(asked)):
        return Reason.TURN_ORDER
    return parts


def alpaca_turns_of(row: dict[str, Any]) -> list[Turn] | Reason:
    """Alpaca's form: instruction, input (may be missing), output; `history` lists earlier (question, answer)."""
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
