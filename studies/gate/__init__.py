"""The gate study: simulated errors and costs, A/A runs, injected faults, mutation."""
