"""Write bytes, seconds and measured numbers for people."""

MIB = 2**20
GIB = 2**30


def readable(size: int) -> str:
    """Write a number of bytes in the largest unit in which it is at least 1.

    >>> readable(6 * GIB)
    '6.00 GiB'
    """
    if size >= GIB:
        return f"{size / GIB:,.2f} GiB"
    if size >= MIB:
        return f"{size / MIB:,.2f} MiB"
    return f"{size / 2**10:,.1f} KiB"


def duration(seconds: float) -> str:
    """Write a time in one or two units: 42 s, 3 min 5 s, 2 h 10 min."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    minutes, rest = divmod(total, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def number(value: float) -> str:
    """Write a measured number with four digits: 0.0001, 1.234, 12,345."""
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
