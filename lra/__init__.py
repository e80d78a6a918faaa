"""Long Range Arena harness: tasks, prepared data, shared models, strict configuration, records and checkpoints."""
