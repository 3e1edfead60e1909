"""All that is asked of one accelerator, within a time."""
