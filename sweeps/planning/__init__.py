"""Plans before the first trial: corpus prepared, lanes measured, memory checked; full training of a winner."""
