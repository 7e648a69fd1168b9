"""Settings of a drawing from JSON: convert each to the type of its field."""

from __future__ import annotations


def typed(name: str, value: object, default: object) -> object:
    """Return a setting of a drawing as its field has it, from what a recipe's JSON has.

    Raises:
        ValueError: it is of another kind than the default, or than its name says.
    """
    if name == "prompts_at":
        return tuple((_whole(step), _text(prompt)) for step, prompt in value)
    if name in ("pictures", "palette"):
        return tuple(map(_text, value))
    if name == "shift":
        right, down = map(_number, value)
        return right, down
    if name in ("lr", "fade"):
        return _number(value)
    if name in ("patience", "grow") or type(default) is int:
        return _whole(value)
    if type(default) is float:
        return _number(value)
    if type(value) is not type(default):
        raise ValueError(name)
    return value


def _whole(value: object) -> int:
    if type(value) is not int:
        raise ValueError(value)
    return value


def _number(value: object) -> float:
    if type(value) not in (int, float):
        raise ValueError(value)
    return float(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(value)
    return value
