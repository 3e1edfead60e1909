"""The pages that show the measurements: figures and HTML."""
