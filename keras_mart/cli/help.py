"""--help: prints the flags and their meaning, by groups."""

import shutil
import textwrap

from keras_mart.cli.flags import FLAGS, GROUPS

WIDEST = 100
USAGE = """Trains robust image classifiers, evaluates them under adversarial attacks, and exports them.

  python -m keras_mart.main --flagfile=configs/digits.cfg
  python -m keras_mart.main --flagfile=configs/digits.cfg --method=trades --workdir=runs/trades
  python -m keras_mart.main --mode=evaluate --workdir=runs/trades --attacks=fgsm,pgd100,cw

A flagfile contains one flag per line. If a flag is given twice, the last value counts; an empty
value, such as --beta=, unsets it. Numbers may be fractions such as 8/255; lists are
comma-separated, such as pgd20,cw."""
END = "--verbosity=1 shows the traceback of errors; --helpfull also lists the flags of libraries."


def requested(arguments):
    """Returns whether the command line's arguments ask for help."""
    return any(each.startswith("-") and each.lstrip("-") in ("help", "helpshort", "h") for each in arguments)


def text():
    """Returns the text of --help."""
    groups = {group: FLAGS.flags_by_module_dict()[group] for group in GROUPS}
    column = max(len(f"  --{flag.name}  ") for members in groups.values() for flag in members)
    width = max(min(WIDEST, shutil.get_terminal_size().columns), 2 * column)
    lines = [USAGE]
    for group, members in groups.items():
        lines += ["", f"{group}:"]
        for flag in members:
            name = f"  --{flag.name}".ljust(column)
            lines.append(textwrap.fill(_meaning(flag), width, initial_indent=name, subsequent_indent=" " * column))
    return "\n".join([*lines, "", END])


def _meaning(flag):
    default = flag.default_unparsed
    return flag.help if default in (None, "") or default is False else f"{flag.help} Default: {default}."
