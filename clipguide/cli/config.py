"""clipguide config: defaults of one's own for the options, from a file and the environment.

    [defaults]            # of every verb that has the option
    device = "cuda"
    [generate]            # of one verb
    steps = 50

An option on the command line comes first, then the environment (CLIPGUIDE_GENERATE_STEPS, then
CLIPGUIDE_STEPS), then the file's table of the verb, then its [defaults].
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError, close_matches
from . import console

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

VERSION = 1
EVERY = "defaults"
PREFIX = "CLIPGUIDE_"
OTHERS = ("CONFIG", "DB", "CACHE", "AUTH", "REWARD_KEY")  # read elsewhere


@dataclass(frozen=True)
class Setting:
    """An option's default and where it stands. The value is checked when the verb is called."""

    verb: str
    option: str
    parameter: str
    value: Any
    source: str


def path() -> Path:
    """$CLIPGUIDE_CONFIG, or clipguide/config.toml in the user's configuration folder."""
    if place := os.environ.get(f"{PREFIX}CONFIG"):
        return Path(place)
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "clipguide" / "config.toml"


def settings(verbs: Mapping[str, Any]) -> list[Setting]:
    """What file and environment say, each option once, with the source that counts.

    Args:
        verbs: the commands by name, as click has them; `config` itself has no defaults.

    Raises:
        UsageError: a file that cannot be read, an unknown table or option.
    """
    verbs = {name: verb for name, verb in verbs.items() if name != "config"}
    found: dict[tuple[str, str], Setting] = {}
    for setting in (*in_file(verbs), *in_environment(verbs)):  # the later one counts
        found[setting.verb, setting.option] = setting
    return sorted(found.values(), key=lambda s: (s.verb, s.option))


def apply(ctx: Any) -> None:
    """Make them the defaults of the verbs of a click context."""
    ctx.obj = settings(ctx.command.commands)
    ctx.default_map = {}
    for setting in ctx.obj:
        ctx.default_map.setdefault(setting.verb, {})[setting.parameter] = setting.value


def source_of(error: Any) -> str | None:
    """Where a value stands that click found wrong, if it is one of these settings."""
    ctx, parameter = error.ctx, error.param
    if ctx is None or parameter is None or ctx.parent is None:
        return None
    source = ctx.get_parameter_source(parameter.name)
    if source is None or source.name != "DEFAULT_MAP":
        return None
    of_this = (ctx.info_name, parameter.name)
    return next((s.source for s in ctx.parent.obj if (s.verb, s.parameter) == of_this), None)


def in_file(verbs: Mapping[str, Any]) -> Iterator[Setting]:
    """The file's settings, those of [defaults] first."""
    place = path()
    try:
        tables = tomllib.loads(place.read_text("utf-8"))
    except FileNotFoundError:
        if f"{PREFIX}CONFIG" in os.environ:
            raise UsageError(f"${PREFIX}CONFIG names {place}, which is not there.") from None
        return
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{place} cannot be read: {error}.") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{place} is not a valid TOML file: {error}.") from None
    version = tables.pop("version", VERSION)
    if version != VERSION:
        raise UsageError(
            f"{place} is of version {version}; this clipguide reads version {VERSION}."
        )
    every = tables.pop(EVERY, {})
    for name, table in ((EVERY, every), *tables.items()):
        if not isinstance(table, dict):
            raise UsageError(
                f"{place}: {name} is not in a table: put it under one, such as [generate]."
            )
    known = {option for verb in verbs for option in options(verbs[verb])}
    for name, value in every.items():
        where = f"{place}, [{EVERY}]"
        if name not in known:
            raise unknown(where, name, known)
        yield from for_each(verbs, name, value, where)
    for verb, table in tables.items():
        if verb not in verbs:
            raise UsageError(
                f"{place}: there is no command [{verb}].{close_matches(verb, [*verbs, EVERY])}"
            )
        has = options(verbs[verb])
        for name, value in table.items():
            where = f"{place}, [{verb}]"
            if name not in has:
                raise unknown(where, name, has)
            yield setting_of(verb, name, has[name], value, where)


def in_environment(verbs: Mapping[str, Any]) -> Iterator[Setting]:
    """The environment's settings, those of every verb first; other names are left alone."""
    told = {k: v for k, v in os.environ.items() if k.startswith(PREFIX)}
    for name in sorted(told):
        yield from for_each(verbs, spelt(name.removeprefix(PREFIX)), told[name], f"${name}")
    for verb, command in verbs.items():
        for option, parameter in options(command).items():
            name = f"{PREFIX}{verb}_{option}".upper().replace("-", "_")
            if name in told:
                yield setting_of(verb, option, parameter, told[name], f"${name}")


def for_each(verbs: Mapping[str, Any], name: str, value: Any, where: str) -> Iterator[Setting]:
    """A setting for each verb that has an option of that name."""
    if name.upper() in OTHERS:
        return
    for verb, command in verbs.items():
        parameter = options(command).get(name)
        if parameter is not None:
            yield setting_of(verb, name, parameter, value, where)


def setting_of(verb: str, option: str, parameter: Any, value: Any, where: str) -> Setting:
    """A setting; of an option that may be given again, one value is a list of one."""
    if isinstance(value, bool) and not parameter.is_flag:
        raise UsageError(f"{where}: {option} takes a value, not true or false.")
    parts = value if isinstance(value, list) and parameter.multiple else [value]
    if not all(isinstance(part, (str, int, float)) for part in parts):
        raise UsageError(f"{where}: {option} takes a number or a text, not {value}.")
    if parameter.multiple and not isinstance(value, list):
        value = [value]
    return Setting(verb, option, parameter.name, value, where)


def options(command: Any) -> dict[str, Any]:
    """A command's options by their long names, without dashes."""
    found = {}
    for parameter in getattr(command, "params", ()):
        for name in parameter.opts:
            if name.startswith("--") and name != "--help":
                found[name[2:]] = parameter
    return found


def unknown(where: str, name: str, known: Any) -> UsageError:
    return UsageError(f"{where}: there is no option {name!r}.{close_matches(name, sorted(known))}")


def spelt(name: str) -> str:
    return name.lower().replace("_", "-")


def config(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Show your defaults, and where each comes from.

    The file is $CLIPGUIDE_CONFIG, or ~/.config/clipguide/config.toml. A table has the name of a
    command; [defaults] is for all. The variable CLIPGUIDE_GENERATE_STEPS is for one command,
    CLIPGUIDE_DEVICE for all.
    """
    found = settings(ctx.parent.command.commands)  # type: ignore[union-attr]
    if as_json:
        rows = [{k: getattr(s, k) for k in ("verb", "option", "value", "source")} for s in found]
        typer.echo(json.dumps({"file": os.fspath(path()), "settings": rows}, indent=2))
        return
    place = path()
    console.tell(f"{place}{'' if place.exists() else ' (not there)'}")
    for s in found:
        source = s.source.removeprefix(f"{place}, ")
        console.tell(f"{s.verb} --{s.option} {json.dumps(s.value)}    from {source}")
    used = {s.source for s in found} | {f"${PREFIX}{name}" for name in OTHERS}
    for name in sorted(os.environ):
        if name.startswith(PREFIX) and f"${name}" not in used:
            console.complain(f"${name} sets no option, or another variable counts instead.")
