"""Do the answers survive? Tasks, methods side by side on the same prompts, and their records."""
