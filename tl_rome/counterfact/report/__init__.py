"""From results to readers: summaries with intervals, Parquet, figures and an HTML page."""
