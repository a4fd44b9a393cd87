"""What is run to show what the neurons do. Not part of the wheel: run it from a checkout.

``python -m benchmarks`` lists the commands.
"""
