"""What time means: one package per place to run. Each has `Config`, `check` and `run` (see harness.testbed)."""
