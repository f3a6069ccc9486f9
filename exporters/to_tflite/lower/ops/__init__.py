"""One handler an ATen operator; `table` knows them all."""
