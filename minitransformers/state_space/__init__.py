"""State spaces: sequences read by a recurrence whose state has a fixed size, and the matrices that the recurrence is."""
