"""Numbers as people read them."""

from __future__ import annotations

import math

_COUNTS = ("", "k", "M", "G", "T", "P")
_BYTES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def count(number: int | None) -> str:
    """A count with three digits and a decimal prefix: 950, 1.02 M, 8.03 G; a dash for None."""
    return _scaled(number, 1000, _COUNTS)


def size(number: int | None) -> str:
    """A number of bytes with three digits and a binary prefix: 12.2 MiB; a dash for None."""
    return _scaled(number, 1024, _BYTES)


def several(number: int | None, noun: str) -> str:
    """A number of things by their noun: 1 thread, 1,797 samples; a dash for None."""
    return f"{'-' if number is None else f'{number:,}'} {noun}{'s' * (number != 1)}"


def share(part: int | None, whole: int | None) -> str:
    """A part of a whole in percent; a dash where one is unknown or the whole is 0."""
    return f"{100 * part / whole:.1f} %" if part is not None and whole else "-"


def change(before: int | None, after: int | None) -> str:
    """By how much a number changed, in percent of what it was; a dash where that has no meaning."""
    if before is None or after is None or not before:
        return "-"
    percent = f"{100 * (after - before) / before:+.1f} %"
    return "0.0 %" if percent in ("+0.0 %", "-0.0 %") else percent


def small(number: float) -> str:
    """A difference: two digits and an exponent, 0 where there is none."""
    return f"{number:.1e}" if number and math.isfinite(number) else f"{number:g}"


def _scaled(number: int | None, base: int, units: tuple[str, ...]) -> str:
    if number is None:
        return "-"
    value, step = float(number), 0
    # 999.5 of a unit would be written with four digits.
    while abs(value) >= (999.5 if base == 1000 else 1023.5) and step < len(units) - 1:
        value, step = value / base, step + 1
    if step == 0:
        return f"{number} {units[0]}".rstrip()
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f} {units[step]}"


def milliseconds(seconds: float) -> str:
    """Seconds in milliseconds, with three digits or more; of less than a microsecond fewer."""
    milli = 1e3 * seconds
    return f"{milli:.{3 if milli < 0.9995 else 2 if milli < 9.995 else 1 if milli < 99.95 else 0}f}"
