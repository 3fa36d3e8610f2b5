"""What was measured of an experiment, as one HTML file. Needs the extra ``report``."""
