"""The maths, free of hosts and devices: neurons, spike functions, the sequence reference."""
