"""The report of a run: numbers as JSON and tables, pictures, one self-contained HTML page."""
