"""The report of a run or a prediction as one self-contained HTML page."""
