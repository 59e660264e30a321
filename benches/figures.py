"""One line of the table: what was measured, and the bound it has to keep."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Figure:
    group: str
    name: str
    measured: float
    unit: str
    detail: str = ""
    bound: float | None = None  # an upper bound; None for a peer, which stands there for comparison

    @property
    def met(self) -> bool | None:
        return None if self.bound is None else self.measured <= self.bound

    def as_json(self) -> dict:
        return asdict(self) | {"met": self.met}


def table(figures: list[Figure]) -> str:
    """Aligned text, one line per figure, a blank line between groups."""
    head = ("figure", "measured", "bound", "met", "how")
    body = [
        (
            f.name,
            _number(f.measured, f.unit),
            "" if f.bound is None else f"<= {_number(f.bound, f.unit)}",
            {None: "", True: "yes", False: "NO"}[f.met],
            f.detail,
        )
        for f in figures
    ]
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head) - 1)]
    lines, group = [_line(head, widths), _line(tuple("-" * w for w in widths) + ("---",), widths)], None
    for figure, row in zip(figures, body, strict=True):
        if group not in (None, figure.group):
            lines.append("")
        group = figure.group
        lines.append(_line(row, widths))
    return "\n".join(lines)


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    name, measured, bound, met, how = row
    return f"{name:<{widths[0]}}  {measured:>{widths[1]}}  {bound:>{widths[2]}}  {met:<{widths[3]}}  {how}".rstrip()


def _number(value: float, unit: str) -> str:
    if unit == "x":
        return f"{value:.3f} x"
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f} {unit}".rstrip()
    return f"{value:.1f} {unit}"
