"""The outcomes side by side."""

from collections.abc import Callable

from page_counters import Counted
from read_through import Served
from serve import Outcome
from stampede import Stampede

SERVED: list[tuple[str, Callable[[Outcome], str]]] = [
    ("requests answered", lambda o: f"{o.answered:,}"),
    ("requests limited", lambda o: f"{o.limited:,}"),
    ("STALE ANSWERS", lambda o: f"{o.stale:,}"),
    ("hit ratio", lambda o: f"{o.hit_ratio:.1%}"),
    ("pages made by the origin", lambda o: f"{o.origin_pages:,}"),
    ("  mean time in the database", lambda o: f"{1000 * o.origin_seconds / max(1, o.origin_pages):.2f} ms"),
    ("answer from the cache, median", lambda o: f"{o.median_ms(hit=True):.2f} ms"),
    ("answer after a miss, median", lambda o: f"{o.median_ms(hit=False):.2f} ms"),
    ("rows updated", lambda o: f"{o.updates:,}"),
    ("  keys invalidated by tag", lambda o: f"{o.invalidated:,}"),
    ("nightly job: nights / runs", lambda o: f"{o.nights} / {o.job_runs}"),
    ("  late writes refused", lambda o: f"{o.refused_late}"),
    ("keys evicted", lambda o: f"{o.server['evicted_keys']:,}"),
    ("commands", lambda o: f"{o.server['total_commands_processed']:,}"),
    ("bytes over the wire", lambda o: f"{o.server['wire_bytes']:,}"),
    ("bytes held at the end", lambda o: f"{o.server['used_memory']:,}"),
    ("  keys held at the end", lambda o: f"{o.server['keys']:,}"),
]
STAMPEDES: list[tuple[str, Callable[[Stampede], str]]] = [
    ("queries", lambda o: f"{o.queries:,}"),
    ("commands sent by the callers", lambda o: f"{o.commands:,}"),
    ("WRONG ANSWERS", lambda o: f"{o.wrong:,}"),
    ("slowest answer, after the first page", lambda o: f"{1000 * o.late_seconds:,.0f} ms"),
]
COUNTED: list[tuple[str, Callable[[Counted], str]]] = [
    ("views", lambda o: f"{o.views:,}"),
    ("  median time that one takes", lambda o: f"{o.median_ms:.2f} ms"),
    ("rows sent to the database", lambda o: f"{o.rows_sent:,}"),
    ("workers that died", lambda o: f"{o.deaths:,}"),
    ("WRONG COUNTERS", lambda o: f"{o.wrong:,}"),
    ("  views that are missing", lambda o: f"{o.lost:,}"),
]
READ_THROUGH: list[tuple[str, Callable[[Served], str]]] = [
    ("pages warmed before", lambda o: f"{o.warmed:,}"),
    ("  in", lambda o: f"{o.warm_seconds:.1f} s"),
    ("pages read", lambda o: f"{len(o.seconds):,}"),
    ("  found in the cache", lambda o: f"{o.hit_ratio:.1%}"),
    ("  of the first hundred", lambda o: f"{o.early_hits:,}"),
    ("WRONG PAGES", lambda o: f"{o.wrong:,}"),
]


def table(outcomes: list, rows: list[tuple[str, Callable]]) -> str:
    names = max(len(name) for name, _ in rows)
    lines = [" " * names + "".join(f"  {o.name:>16}" for o in outcomes)]
    lines += [f"{name:<{names}}" + "".join(f"  {show(o):>16}" for o in outcomes) for name, show in rows]
    return "\n".join(lines)
