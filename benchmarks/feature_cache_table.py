"""Feature cache table: what `jscc.benchmarks.feature_cache` measured; drawn without PyTorch."""

from collections.abc import Mapping
from typing import Any

from jscc.benchmarks.report import markdown_table


def table(document: Mapping[str, Any]) -> str:
    """The settings as a Markdown table."""
    rows = [
        (
            str(row["steps"]),
            str(row["every"]) if row["every"] > 1 else "–",
            f"{row['cost']:.1f}",
            f"{row['psnr_db']:.2f}",
            f"{row['lpips']:.4f}",
        )
        for row in document["rows"]
    ]
    header = ("steps", "one whole of", "cost, whole steps", "PSNR, dB", "LPIPS")
    return markdown_table(header, rows)
