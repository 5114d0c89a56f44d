"""Ablations: variants of a run, with seeds, measures, intervals and a report."""
