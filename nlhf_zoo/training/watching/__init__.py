"""Who watches a run: its failures are named with their remedies, its quality is measured, its divergence stops it."""
