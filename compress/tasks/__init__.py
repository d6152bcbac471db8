"""What a model is trained and judged for, one file a task."""
