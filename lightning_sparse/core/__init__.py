"""The engine and its parts: masks, schedules, allocations, selection, plan. Knows torch, nothing else."""
