"""What memories are made of: scores, priorities, units, positions."""
