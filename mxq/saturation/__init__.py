"""CPUs without VNNI add two products of codes in 16 bits: which sums saturate, what that costs, and what to do."""
