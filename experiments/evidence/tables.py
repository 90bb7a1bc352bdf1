"""The evidence as rows for JSON and tables for a terminal."""

from collections.abc import Iterable

from rich.table import Table

from experiments.evidence.counted import Counted
from experiments.evidence.model import (
    CLOCK_HZ,
    LITTLE_BYTES,
    MEASURED_BPS,
    PEAK_BPS,
    limit_s,
    model,
)
from hip_engine.gfx942.occupancy import COMPUTE_UNITS, occupancy

MODELLED = "modelled, not measured on an MI300X"


def kernel_row(name: str, found: Counted) -> dict:
    """What holds for a kernel whatever the batch and context: code object and counters."""
    d, memory = found.descriptor, found.launch.memory
    resident = occupancy(d, found.threads)
    return {
        "kernel": d.symbol,
        "for": name,
        "vgprs": d.metadata[".vgpr_count"],
        "agprs": d.metadata.get(".agpr_count", 0),
        "sgprs": d.metadata[".sgpr_count"],
        "spills": d.metadata[".vgpr_spill_count"] + d.metadata[".sgpr_spill_count"],
        "scratch_bytes": d.scratch_bytes,
        "lds_bytes": d.lds_bytes,
        "waves_per_simd": resident.waves_per_simd,
        "bound_by": resident.bound,
        "mfma": found.launch.executed.get("mfma", 0) // found.workgroups,
        "bytes_over_least": found.over_read,
        "wide_share": found.wide_share,
        "line_efficiency": found.line_efficiency,
        "loads_in_flight": memory.flight_peak,
        "flight_bytes_per_cu": found.flight_bytes * found.resident,
        "bank_conflicts": found.bank_conflicts,
        "clocks_per_workgroup": found.clocks,
        "bytes_per_workgroup": found.fetched / found.workgroups,
        "issue_slots": {k: v // found.workgroups for k, v in found.slots.items() if v},
    }


def shape_row(name: str, launches: list[tuple[Counted, int]], least: float, **where) -> dict:
    """One shape: (kernel, workgroups of its whole launch) each; `least` bytes in all.

    `limit_of`: the fraction that is left by the round trips before the data of each launch, and by
    the bytes of a second launch, were issue and loads in flight free.
    """
    row = {"kernel": launches[0][0].descriptor.symbol, "for": name, **where}
    row |= {"workgroups": launches[0][1], "least_bytes": least}
    row["workgroups_per_cu"] = launches[0][1] / COMPUTE_UNITS
    for label, ceiling in (("5.3", PEAK_BPS), ("4.2", MEASURED_BPS)):
        parts = [model(found.work(), count, ceiling) for found, count in launches]
        seconds = sum(part.seconds for part in parts)
        row[f"modelled_us_at_{label}"] = 1e6 * seconds
        row[f"fraction_of_{label}"] = least / ceiling / seconds
        works = [(found.work(), count) for found, count in launches]
        row[f"limit_of_{label}"] = least / ceiling / limit_s(works, ceiling)
        row[f"bound_at_{label}"] = parts[0].bound
    first = launches[0][0]
    row["issue_over_memory_at_4.2"] = (
        first.clocks * launches[0][1] / COMPUTE_UNITS / CLOCK_HZ * MEASURED_BPS
    ) / (first.work().bytes * launches[0][1])
    return row


def kernel_table(title: str, rows: Iterable[dict]) -> Table:
    heads = "kernel|for|VGPR|AGPR|spills|LDS|waves/SIMD|read/least|16-byte|128-byte lines"
    heads += f"|in flight a wave|KB a CU (of {LITTLE_BYTES / 1e3:.1f})|bank conflicts|clocks/KB"
    table = _table(title, heads)
    for r in rows:
        table.add_row(
            *(r["kernel"], r["for"], str(r["vgprs"]), str(r["agprs"]), str(r["spills"])),
            *(str(r["lds_bytes"]), f"{r['waves_per_simd']} ({r['bound_by']})"),
            *(f"{r['bytes_over_least']:.3f}", f"{100 * r['wide_share']:.0f} %"),
            *(f"{100 * r['line_efficiency']:.0f} %", str(r["loads_in_flight"])),
            *(f"{r['flight_bytes_per_cu'] / 1e3:.0f}", f"{r['bank_conflicts']:.1f}"),
            f"{1024 * r['clocks_per_workgroup'] / r['bytes_per_workgroup']:.0f}",
        )
    return table


def shape_table(title: str, rows: list[dict], column: str) -> Table:
    """A row for each kernel, a cell for each value of `column`."""
    columns = list(dict.fromkeys(row[column] for row in rows))
    table = _table(title, "|".join(["kernel", "for", *columns]))
    for key in dict.fromkeys((row["kernel"], row["for"]) for row in rows):
        mine = {row[column]: row for row in rows if (row["kernel"], row["for"]) == key}
        table.add_row(*key, *(_cell(mine[c]) if c in mine else "" for c in columns))
    return table


def _cell(row: dict) -> str:
    at = f"{100 * row['fraction_of_4.2']:.0f} % / {100 * row['fraction_of_5.3']:.0f} %"
    return f"{at}, {row['workgroups']} wg, {row['bound_at_4.2']}"


def _table(title: str, heads: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for index, head in enumerate(heads.split("|")):
        table.add_column(head, justify="left" if index < 2 else "right", overflow="fold")
    return table
