"""What notebooks, reports and figures show of results: a leaf that no result imports at the top."""
