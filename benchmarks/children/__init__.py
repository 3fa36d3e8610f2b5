"""Child programs: each runs in a fresh process, gets options as JSON, and writes a record."""
