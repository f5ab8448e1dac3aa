"""The start of a workflow: what MONAI's runner would pass over in silence ends in one line, before anything runs."""

from __future__ import annotations

import ast
import re
import sys
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.utils import EXPR_KEY, ID_REF_KEY, ID_SEP_KEY, MACRO_KEY

from scripts.core.errors import SettingsError, show_one_line
from scripts.core.machine import use_own_cores
from scripts.core.overrides import INIT_ID, check_section, place_advanced, refuse_unknown
from scripts.core.running import running_workflow, settings_in
from scripts.core.settings import is_same_value, with_role

__all__ = ["as_literal", "import_again", "refuse_changed", "refuse_lost", "start", "started"]

TRAINED = "trained"
"""The key of a config with the settings of the weights that it uses."""

FINAL_ID = "finalize"
REFERENCE = re.compile(rf"{ID_REF_KEY}\w*(?:(?:#|{ID_SEP_KEY})\w*)*")
FILE_OPTIONS = ("config_file", "meta_file", "logging_file", "args_file", "tracking")
OPTION = re.compile(r"-{1,2}[a-zA-Z]")

_started: weakref.WeakSet[ConfigParser] = weakref.WeakSet()


def start() -> None:
    """Check how the running workflow was called, and its settings. Stands in every config's ``initialize``.

    From here on a user's mistake ends in one line, and computing takes the cores that this process may use. Where no
    workflow is running, as where a program reads the config with :class:`~monai.bundle.ConfigParser` alone, nothing
    else happens.

    Raises:
        SettingsError: if something was lost or changed on its way to the config, if ``final_id`` is no id of the
            config, if an option cannot act (:func:`scripts.core.overrides.refuse_unknown`), if a setting has no
            such value, or if it contradicts the weights that are to be used.
    """
    show_one_line()
    workflow = running_workflow()
    if workflow is None:
        return
    parser = workflow.parser
    if _is_command():
        refuse_lost(sys.argv[1:])
    if workflow.final_id != FINAL_ID and workflow.final_id not in parser:
        raise _stray("final_id", workflow.final_id, "which the config does not have")
    check_section(workflow)
    place_advanced(parser)
    refuse_unknown(workflow)
    for key, value in parser.get().items():
        if key != ConfigParser.meta_key:
            refuse_changed(value, key)
    _refuse_contradictions(settings_in(parser), parser)
    use_own_cores()
    _started.add(parser)


def started() -> None:
    """Refuse to go on with a workflow that was not started. The first expression of every config's workflow.

    MONAI's runner takes the second word of a command as the id of what to run first, in the place of ``initialize``.

    Raises:
        SettingsError: if the running workflow was not started.
    """
    workflow = running_workflow()
    if workflow is None or workflow.parser in _started:
        return
    show_one_line()
    if workflow.init_id != INIT_ID:
        raise _stray("init_id", workflow.init_id, "in place of initialize, so that nothing was checked")
    raise SettingsError("workflow", "was run before it was initialized", "Call its initialize() first.")


def refuse_lost(arguments: Sequence[str]) -> None:
    """Refuse words of a command that its parser (Python Fire) or MONAI drops or changes without a message.

    Args:
        arguments: what follows the module's name on the command line.

    Raises:
        SettingsError: if there is a lone ``-`` or ``--``, a second ``--config_file``, a list of files of which a later
            one replaces the first, a value that is ``None``, or one with ``#`` other than in an id of the config.
    """
    for dashes in ("-", "--"):
        if dashes in arguments:
            raise SettingsError(dashes, "what follows it would be lost", "Leave it out, or put the path in quotes.")
    options = [argument.lstrip("-").partition("=")[0] for argument in arguments if OPTION.match(argument)]
    if options.count("config_file") > 1:
        remedy = """Give one list: --config_file "['configs/train.json','mine.json']"."""
        raise SettingsError("config_file", "given more than once, of which only the last would be read", remedy)
    option = ""
    for argument in arguments:
        value = argument
        if OPTION.match(argument):
            option, _, value = argument.lstrip("-").partition("=")
        if option == "config_file":
            _refuse_replaced(value)
        if value == "None":
            remedy = "Leave the option out, or put null into a second config file."
            raise SettingsError(option, "got None, which MONAI's runner ignores", remedy)
        if "#" in REFERENCE.sub("", value) and not value.startswith(MACRO_KEY) and option not in FILE_OPTIONS:
            raise _changed(option or "#", value)


def refuse_changed(value: Any, key: str) -> None:
    """Refuse texts of a config that may be others than were given: MONAI writes ``::`` in the place of ``#``.

    Args:
        value: of the config; what is neither text, list nor dictionary is as it was given.
        key: its id, for the error.

    Raises:
        SettingsError: if there is a text with ``::`` that is no reference and no expression.
    """
    if isinstance(value, dict | list):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            refuse_changed(item, f"{key}#{name}")
    elif isinstance(value, str) and _is_plain(value) and ID_SEP_KEY in value:
        raise _changed(key, value)


def as_literal(value: Any) -> Any:
    """What MONAI's config parser evaluates to exactly this value of a setting, if it has texts with ``#``, too."""
    if isinstance(value, list | tuple):
        return [as_literal(item) for item in value]
    if isinstance(value, str) and _is_plain(value) and ("#" in value or ID_SEP_KEY in value):
        # An expression without the signs that MONAI looks for in one.
        signs = ("#", ID_REF_KEY, MACRO_KEY)
        return EXPR_KEY + "".join(rf"\x{ord(sign):02x}" if sign in signs else sign for sign in repr(value))
    return value


def import_again() -> None:
    """Let the running workflow evaluate its ``imports`` again, after what they name can be found."""
    workflow = running_workflow()
    if workflow is not None:
        workflow.parser.parse(reset=True)


def _refuse_contradictions(settings: Mapping[str, Any], parser: ConfigParser) -> None:
    trained = parser.get_parsed_content(TRAINED) if TRAINED in parser.get() else {}
    for name in with_role("decides"):
        given, kept = settings.get(name), trained.get(name)
        if given is None or kept is None or is_same_value(name, given, kept):
            continue
        remedy = "Leave the option out, or name other weights: --ckpt_dir PATH."
        raise SettingsError(name, f"got {given!r}, and the weights were trained with {kept!r}", remedy)


def _refuse_replaced(value: str) -> None:
    """Refuse a list of config files in which a whole one comes after another, whose keys it replaces."""
    try:
        files = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return  # one path, or what MONAI refuses
    for i, file in enumerate(files if isinstance(files, list | tuple) else []):
        path = Path(str(file))
        if i > 0 and path.is_file() and INIT_ID in ConfigParser.load_config_file(path):
            cause = f"{path} would replace what {files[0]} sets"
            raise SettingsError("config_file", cause, f"Give {path} first, and after it what is laid over it.")


def _is_command() -> bool:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec is not None and spec.name == "monai.bundle.__main__"


def _is_plain(text: str) -> bool:
    return not text.startswith((EXPR_KEY, MACRO_KEY)) and REFERENCE.fullmatch(text) is None


def _changed(key: str, value: str) -> SettingsError:
    example = (value if value.startswith(EXPR_KEY) else f"$'{value}'").replace("#", r"\x23")
    remedy = rf'Rename it, or give an expression with \x23 for #, for example --{key} "{example}".'
    return SettingsError(key, f"got {value!r}, and MONAI writes :: for #", remedy)


def _stray(option: str, word: Any, why: str) -> SettingsError:
    remedy = "If it is a stray word, leave it out: options begin with --, and a path with a space needs quotes."
    return SettingsError(option, f"got {word!r}, {why}", remedy)


# A command whose `initialize` was never named builds what a stray word names, before `started` is reached.
if _is_command():
    show_one_line()
