"""Commands of all families at once, for hours: see docs/testing.md."""
