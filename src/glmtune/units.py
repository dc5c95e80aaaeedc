"""Bytes for people."""


def readable(size: int) -> str:
    """Write bytes in the largest unit that leaves something before the point."""
    for unit, exponent in (("GiB", 30), ("MiB", 20)):
        if size >= 2**exponent:
            return f"{size / 2**exponent:,.2f} {unit}"
    return f"{size / 2**10:,.1f} KiB"
