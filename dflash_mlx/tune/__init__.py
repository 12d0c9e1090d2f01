"""What rounds take on this machine: measured once, stored, handed to the policy."""
