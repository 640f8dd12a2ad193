"""All that judges: models, captures, records, benchmarks, evaluation, tuning, analysis."""
