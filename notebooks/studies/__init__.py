"""Hours-long runs whose results are shipped or recorded: extractor, ablation study, weights."""
