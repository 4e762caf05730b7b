"""Does augmentation help? A study of paired runs: plan, runs, cluster, results, statistics."""
