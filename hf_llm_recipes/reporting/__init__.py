"""The parts of a report: what a run's folder says, drawn and set as one page."""
