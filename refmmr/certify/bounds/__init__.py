"""Certification methods: one bound a file, each a function from points to `Bounds`."""
