"""Long runs whose outcome is recorded or shipped: the extractor, the ladder, the weights."""
