"""From a probability map to numbered cells; nothing here knows a run."""
