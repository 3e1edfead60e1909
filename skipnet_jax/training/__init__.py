"""How a run is led, from its config to its summary."""
