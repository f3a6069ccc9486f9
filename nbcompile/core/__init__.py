"""Ground floor: algebra, blocks, graphs, records, numerics. Imports nothing from above."""
