"""One run: plan, data, training loop, evaluation, record."""
