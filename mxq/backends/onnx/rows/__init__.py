"""The rows of the table, by topic."""
