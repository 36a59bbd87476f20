"""What chapters report through: sections, claims over seeds, tables, figures, and the measures that they share."""

from minitransformers.reporting.figures import level, lines, ticks_at
from minitransformers.reporting.measures import (
    bits,
    bits_in_windows,
    counted_pairs,
    fitted_exponent,
    paired_times,
    peak_megabytes,
    processor_seconds,
    shortest_times,
)
from minitransformers.reporting.run import run_chapter
from minitransformers.reporting.section import Section
from minitransformers.reporting.seeds import Found, along
from minitransformers.reporting.tables import mean_and_spread

__all__ = [
    "Found", "Section", "along", "bits", "bits_in_windows", "counted_pairs", "fitted_exponent", "level", "lines", "mean_and_spread", "paired_times", "peak_megabytes", "processor_seconds",
    "run_chapter", "shortest_times", "ticks_at",
]  # fmt: skip
