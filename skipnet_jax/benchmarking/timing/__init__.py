"""What is measured: times, power, work, and the limits of both."""
