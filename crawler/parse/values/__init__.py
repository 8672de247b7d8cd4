"""One value of a record as its column takes it: numbers, times, JSON, and the bounds of types."""
