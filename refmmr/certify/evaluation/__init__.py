"""The pipeline of a table: stages, records, workers and results."""
