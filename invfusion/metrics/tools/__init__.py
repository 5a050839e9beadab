"""What metrics are made of: distances between sets, ranks, intervals, networks and their weights."""
