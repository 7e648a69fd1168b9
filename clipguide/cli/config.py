"""clipguide config: read your defaults for the options from a file and the environment.

    [defaults]            # applies to each command that has the option
    device = "cuda"
    [generate]            # applies to one command
    steps = 50

An option on the command line comes first. Next come the environment variables
(CLIPGUIDE_GENERATE_STEPS, then CLIPGUIDE_STEPS), the table of the command in the file, and the
table [defaults].
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
OTHERS = ("CONFIG", "DB", "CACHE", "AUTH", "REWARD_KEY")  # another module reads it


@dataclass(frozen=True)
class Setting:
    """A default of an option, and its source. The command checks the value when it runs."""

    verb: str
    option: str
    parameter: str
    value: Any
    source: str


def path() -> Path:
    """Return $CLIPGUIDE_CONFIG, or clipguide/config.toml in your configuration folder."""
    if place := os.environ.get(f"{PREFIX}CONFIG"):
        return Path(place)
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "clipguide" / "config.toml"


def settings(verbs: Mapping[str, Any]) -> list[Setting]:
    """Return the settings of the file and the environment. Each option is listed once, with the
    source that applies.

    Args:
        verbs: the commands by name, as click has them; `config` itself has no defaults.

    Raises:
        UsageError: a file that cannot be read, or an unknown table or option.
    """
    verbs = {name: verb for name, verb in verbs.items() if name != "config"}
    found: dict[tuple[str, str], Setting] = {}
    for setting in (*in_file(verbs), *in_environment(verbs)):  # the last one applies
        found[setting.verb, setting.option] = setting
    return sorted(found.values(), key=lambda s: (s.verb, s.option))


def apply(ctx: Any) -> None:
    """Make the settings the defaults of the commands of a click context."""
    ctx.obj = settings(ctx.command.commands)
    ctx.default_map = {}
    for setting in ctx.obj:
        ctx.default_map.setdefault(setting.verb, {})[setting.parameter] = setting.value


def source_of(error: Any) -> str | None:
    """Return the source of a value that click refused, if it is one of these settings."""
    ctx, parameter = error.ctx, error.param
    if ctx is None or parameter is None or ctx.parent is None:
        return None
    source = ctx.get_parameter_source(parameter.name)
    if source is None or source.name != "DEFAULT_MAP":
        return None
    of_this = (ctx.info_name, parameter.name)
    return next((s.source for s in ctx.parent.obj if (s.verb, s.parameter) == of_this), None)


def in_file(verbs: Mapping[str, Any]) -> Iterator[Setting]:
    """Return the settings of the file, those of [defaults] first."""
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
    """Return the settings of the environment, those for all commands first. Ignore other variables.
    """
    told = {k: v for k, v in os.environ.items() if k.startswith(PREFIX)}
    for name in sorted(told):
        yield from for_each(verbs, spelt(name.removeprefix(PREFIX)), told[name], f"${name}")
    for verb, command in verbs.items():
        for option, parameter in options(command).items():
            name = f"{PREFIX}{verb}_{option}".upper().replace("-", "_")
            if name in told:
                yield setting_of(verb, option, parameter, told[name], f"${name}")


def for_each(verbs: Mapping[str, Any], name: str, value: Any, where: str) -> Iterator[Setting]:
    """Return a setting for each command that has an option of that name."""
    if name.upper() in OTHERS:
        return
    for verb, command in verbs.items():
        parameter = options(command).get(name)
        if parameter is not None:
            yield setting_of(verb, name, parameter, value, where)


def setting_of(verb: str, option: str, parameter: Any, value: Any, where: str) -> Setting:
    """Return a setting. If the option can be repeated, a single value becomes a list."""
    if isinstance(value, bool) and not parameter.is_flag:
        raise UsageError(f"{where}: {option} takes a value, not true or false.")
    parts = value if isinstance(value, list) and parameter.multiple else [value]
    if not all(isinstance(part, (str, int, float)) for part in parts):
        raise UsageError(f"{where}: {option} takes a number or a text, not {value}.")
    if parameter.multiple and not isinstance(value, list):
        value = [value]
    return Setting(verb, option, parameter.name, value, where)


def options(command: Any) -> dict[str, Any]:
    """Return the options of a command by their long names, without dashes."""
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
    """Show your defaults, and the source of each.

    To set a default, edit the TOML file $CLIPGUIDE_CONFIG or ~/.config/clipguide/config.toml. The
    table [generate] applies to generate, and [defaults] to all commands: steps = 50 in [generate]
    is --steps 50. Environment variables override the file: CLIPGUIDE_GENERATE_STEPS applies to
    generate, and CLIPGUIDE_STEPS to all commands.
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
