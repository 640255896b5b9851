"""The benchmark: arms, tasks, runs, their records, and the statistics that judge them."""
