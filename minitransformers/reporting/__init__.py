"""What chapters report through: sections, claims over seeds, tables, figures, and the measures that they share.

What several chapters begin with, a small trained model for example, lies here; what the sections of one chapter share, in the folder of its name.
"""

from minitransformers.reporting.figures import by_pairs, dots, level, lines, ticks_at
from minitransformers.reporting.measures import (
    apart,
    bits,
    bits_after,
    bits_in_windows,
    counted_pairs,
    crossing,
    fitted_exponent,
    gradient_by_distance,
    growth,
    mean_nats,
    nats,
    paired_times,
    peak_megabytes,
    processor_seconds,
    shortest_times,
)
from minitransformers.reporting.run import run_chapter
from minitransformers.reporting.section import Section
from minitransformers.reporting.seeds import Found, along, one_seed, tried
from minitransformers.reporting.tables import listed, mean_and_spread, size_and_time

__all__ = [
    "Found", "Section", "along", "apart", "bits", "bits_after", "bits_in_windows", "by_pairs", "counted_pairs", "crossing", "dots", "fitted_exponent", "gradient_by_distance", "growth", "level", "lines", "listed", "mean_and_spread", "mean_nats", "nats", "one_seed", "paired_times",
    "peak_megabytes", "processor_seconds", "run_chapter", "shortest_times", "size_and_time", "ticks_at", "tried",
]  # fmt: skip
