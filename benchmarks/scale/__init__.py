"""How cost grows: time and memory against what a run is asked for, and which part comes to dominate."""
